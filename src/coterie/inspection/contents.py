"""What a store or a checkpoint holds, on disk and in memory, without reading any expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from coterie.checkpoint import Checkpoint
from coterie.errors import UsageError
from coterie.extraction.whole import plan_whole
from coterie.inspection.checkpoint_contents import inspect_checkpoint
from coterie.inspection.report import InspectReport
from coterie.inspection.store_contents import inspect_store
from coterie.origins import CheckpointOrigin
from coterie.origins.store_or_checkpoint import store_path
from coterie.spec import parse_bytes
from coterie.store import Store


def inspect(
    model: str | Path,
    *,
    memory: str | int | Sequence[str | int] | None = None,
    component: str | None = None,
    scheme: str | None = None,
    dense_scheme: str | Mapping[str, str] | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> InspectReport:
    """Says what a store or a checkpoint holds. Reads manifests and headers, no expert.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``.
        memory: A budget for the whole process, such as ``"8GiB"``, or several: what would each hold?
        component: Only this part of a whole model, such as ``thinker``.
        scheme: Of a checkpoint: what would a store hold whose experts are stored so? One for all of them.
        dense_scheme: Likewise, of linear layers outside experts.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.

    Raises:
        StoreError: If the store is unfinished or damaged.
        CheckpointError: If the checkpoint is not complete and consistent.
        UsageError: If the budget is not a size, the model has no such component, there is no such scheme, or a store
            is to be looked at as if it had another one.
    """
    asked = () if memory is None else (memory,) if isinstance(memory, str | int) else tuple(memory)
    budgets = [parse_bytes(budget, what="memory") for budget in asked]
    path = store_path(model)
    wanted = scheme is not None or dense_scheme is not None
    if path is not None:
        if wanted:
            raise UsageError(
                f"{path} is a store, and has its schemes.",
                advice="Leave the schemes out, or name the checkpoint to see what another store of it would hold.",
                path=path,
            )
        return inspect_store(Store.open(path), component, budgets)
    checkpoint = Checkpoint.open(model, component=component, revision=revision, offline=offline)
    plan = plan_whole(CheckpointOrigin(checkpoint), scheme, dense_scheme) if wanted else None
    return inspect_checkpoint(checkpoint, budgets, plan)

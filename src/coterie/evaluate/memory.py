"""Two models under one budget: how much of it the first may take so that the second fits."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.engine import ModelSource
from coterie.engine.promises import promised_nbytes
from coterie.errors import MemoryBudgetError
from coterie.evaluate.scores import SLICE_NBYTES
from coterie.plan.budget import LOADING_NBYTES, divide, least_budget, least_that
from coterie.plan.machine import default_memory_budget, process_memory
from coterie.spec import format_bytes, parse_bytes
from coterie.spec.footprint import Footprint

_LOGIT_NBYTES = 4
"""Of a logit as it is kept: models give them in their own dtype, at most float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What :func:`coterie.load` is given as ``memory``, for the full model, which is opened first, and for the other.

    Each is a ceiling for the process as it then is. What is left between the second and the user's own budget is for
    logits. None: no ceiling.
    """

    full: int | None
    model: int | None


def logits_nbytes(source: ModelSource, context: int) -> int:
    """Memory for one model's logits of a window."""
    return context * source.footprint.shape.vocabulary * _LOGIT_NBYTES


def workspace_nbytes(source: ModelSource, context: int, *, models: int) -> int:
    """Memory for what evaluation adds to running the models: a window's logits of each, and slices in float64."""
    return models * logits_nbytes(source, context) + SLICE_NBYTES


def share_memory(
    model: ModelSource,
    full: ModelSource | None,
    *,
    memory: str | int | None,
    expert_memory: str | int | None,
    context: int,
    inputs: int,
    kept: bool = False,
) -> Shares:
    """Divides the budget of the process.

    The experts of each get the same share of their bytes, unless one of them needs less. With ``expert_memory``, which
    sizes each model's arena, there is nothing to divide.

    Args:
        model: The model that is evaluated.
        full: What it is compared with, or None.
        memory: The user's ceiling; default: what the machine allows.
        expert_memory: As given to both models.
        context: Tokens of the longest sequence.
        inputs: Input tokens of a window, of all of which logits are looked at; 0 where there are no windows.
        kept: Whether the model is alone, beside logits of the full one that are kept on disk.

    Raises:
        MemoryBudgetError: If both do not fit; says which budget would do.
    """
    if memory is None and expert_memory is not None:
        return Shares(full=None, model=None)
    whole = default_memory_budget() if memory is None else parse_bytes(memory, what="memory")
    workspace = workspace_nbytes(full or model, inputs, models=2 if full is not None or kept else 1)
    budget = whole - workspace
    if full is None or expert_memory is not None:
        return Shares(full=max(budget, 0), model=max(budget, 0))
    first, second = full.footprint, model.footprint
    process = process_memory().total + promised_nbytes()
    needs = sum(_alone_nbytes(one, context) for one in (first, second))

    def room(budget: int) -> int:
        return budget - process - needs - _together_nbytes(budget, first, context)

    left = room(budget)
    if left < 0:
        enough = least_that(lambda memory: room(memory - workspace) >= 0)
        raise MemoryBudgetError(
            f"A memory budget of {format_bytes(whole)} is too small for two models at once: what both need besides "
            f"experts takes {format_bytes(budget - process - left)}, logits {format_bytes(workspace)}, and the process "
            f"{format_bytes(process)}.",
            advice=f'memory="{enough >> 20}MiB" would do; a smaller context needs less.',
            budget=whole,
            minimum=enough,
        )
    totals = first.all_experts, second.all_experts
    fair = left * totals[0] // max(1, sum(totals))
    experts = first.least_experts + max(fair, left - totals[1])
    # With more experts than there are, it would have memory that the other could use.
    share = least_budget(first, context, process=process + first.dense, experts=min(experts, totals[0]))
    return Shares(full=share, model=budget)


def _alone_nbytes(footprint: Footprint, context: int) -> int:
    """What a model takes beside others before it has more experts than the least."""
    plan = divide(0, footprint, context, process=footprint.dense)
    # Its own budget is in whole MiB.
    return plan.rest - plan.libraries + footprint.least_experts + LOADING_NBYTES + (1 << 20)


def _together_nbytes(budget: int, footprint: Footprint, context: int) -> int:
    """What a process takes once, however many models are in it: libraries at work, and the margin."""
    plan = divide(max(budget, 0), footprint, context, process=0)
    return plan.libraries + plan.margin

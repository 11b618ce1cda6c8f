"""From a checkpoint and a selection to the plan of a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from coterie.checkpoint import Checkpoint, CheckpointBank
from coterie.extraction.dense import dense_tensors
from coterie.extraction.quantising import SchemedExperts, one_scheme
from coterie.origins.origin import SchemeOf, bank_sources, files_beside, files_changed, made_from
from coterie.spec import BankKey, ExpertKey
from coterie.spec.encodings import NATIVE
from coterie.store import BankPlan, DenseTensor, ModelFacts, PlannedExpert, SourceFacts, StorePlan

_UNKNOWN = "0" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionPlan:
    """What is to be read and written.

    Attributes:
        store: What the store is to hold; without fingerprints until :func:`with_fingerprints`.
        dense: Everything that is not an expert.
        side_files: Files to copy, by their name in the store.
        changed_files: Those of them that get another content, and that content.
        tensors: Checkpoint tensors that are read.
    """

    store: StorePlan
    dense: tuple[DenseTensor, ...]
    side_files: Mapping[str, Path]
    changed_files: Mapping[str, bytes]
    tensors: tuple[str, ...]


def plan_extraction(
    checkpoint: Checkpoint,
    chosen: Mapping[BankKey, tuple[int, ...]],
    scheme: str | SchemeOf = NATIVE,
    dense_scheme: str = NATIVE,
) -> ExtractionPlan:
    """Plans a store that holds the chosen experts and everything that is not an expert. Reads no tensor.

    Raises:
        CheckpointFileError: If the checkpoint's directory cannot be listed.
    """
    files = files_beside(checkpoint)
    plan = StorePlan(
        model=ModelFacts(
            class_name=type(checkpoint.skeleton).__name__,
            model_type=checkpoint.model_type,
            component=_component(checkpoint),
            identity=_UNKNOWN,
        ),
        source=SourceFacts(name=checkpoint.location.name, revision=checkpoint.location.revision, integrity=_UNKNOWN),
        banks=bank_plans(checkpoint, chosen, scheme),
        files=tuple(files),
        ignored=tuple(sorted(checkpoint.keymap.ignored)),
        dense_scheme=dense_scheme,
        made_from=made_from(checkpoint),
    )
    experts = (name for key, ids in chosen.items() for e in ids for name in checkpoint.names_of(key.expert(e)))
    return ExtractionPlan(
        store=plan,
        dense=dense_tensors(checkpoint, dense_scheme),
        side_files=files,
        changed_files=files_changed(checkpoint),
        # A store has no tensors under the names of weights that are in a scheme, and nothing to download.
        tensors=tuple(
            name for name in dict.fromkeys([*checkpoint.keymap.dense, *experts]) if name in checkpoint.tensors
        ),
    )


def bank_plans(
    checkpoint: Checkpoint, chosen: Mapping[BankKey, tuple[int, ...]], scheme: str | SchemeOf = NATIVE
) -> tuple[BankPlan, ...]:
    """All banks of a checkpoint with their chosen experts; banks that are not named get none.

    Args:
        checkpoint: The checkpoint, or a store seen as one.
        chosen: Bank → ids.
        scheme: That of all experts, or of each.
    """
    scheme_of = one_scheme(scheme)
    experts = SchemedExperts(checkpoint, scheme_of)

    def planned(key: ExpertKey) -> PlannedExpert:
        return PlannedExpert(expert=key.expert, scheme=scheme_of(key), layout=experts.layout(key))

    return tuple(
        BankPlan(
            key=key,
            num_experts=bank.bank.num_experts,
            top_k=bank.bank.top_k,
            sources=bank_sources(checkpoint, key) or source_patterns(bank),
            experts=tuple(planned(key.expert(expert)) for expert in chosen.get(key, ())),
        )
        for key, bank in checkpoint.banks.items()
    )


def with_fingerprints(plan: ExtractionPlan, checkpoint: Checkpoint) -> ExtractionPlan:
    """The plan with the fingerprints of model and source; downloads the shards that hold the routers."""
    store = replace(
        plan.store,
        model=replace(plan.store.model, identity=checkpoint.identity),
        source=replace(plan.store.source, integrity=checkpoint.integrity),
    )
    return replace(plan, store=store)


def source_patterns(bank: CheckpointBank) -> tuple[str, ...]:
    """The checkpoint keys that a bank comes from, with ``*`` for the expert's number."""
    return tuple(
        pattern for source in bank.fields.values() for names in source.names.values() for pattern in _pattern(names)
    )


def _pattern(names: list[str]) -> Iterable[str]:
    if len(names) == 1:
        return names
    parts = [name.split(".") for name in names]
    differing = [index for index, part in enumerate(zip(*parts, strict=True)) if len(set(part)) > 1]
    if len(differing) != 1:
        return names
    first = parts[0]
    first[differing[0]] = "*"
    return [".".join(first)]


def _component(checkpoint: Checkpoint) -> str | None:
    """The component, or None where the checkpoint is nothing but that component: both open the same."""
    whole = (getattr(checkpoint.config, "architectures", None) or [None])[0]
    return None if whole == type(checkpoint.skeleton).__name__ else checkpoint.component

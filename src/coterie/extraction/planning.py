"""From an origin and a selection to the plan of a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from coterie.extraction.dense import dense_tensors
from coterie.extraction.quantising import SchemedExperts, SchemeOf, one_scheme
from coterie.origins import Origin
from coterie.spec import BankKey, ExpertKey
from coterie.spec.dense_schemes import NATIVE_EVERYWHERE, DenseSchemes
from coterie.spec.encodings import NATIVE
from coterie.store import (
    AllocationFacts,
    BankPlan,
    CalibrationFacts,
    DenseTensor,
    ModelFacts,
    PlannedExpert,
    SourceFacts,
    StorePlan,
)

_UNKNOWN = "0" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionPlan:
    """What is to be read and written.

    Attributes:
        store: What the store is to hold; without fingerprints until :func:`with_fingerprints`.
        dense: Everything that is not an expert.
        side_files: Files to copy, by their name in the store.
        changed_files: Files with another content than the origin's, or that it does not have, and that content.
        tensors: Tensors of the origin that are read, by name.
    """

    store: StorePlan
    dense: tuple[DenseTensor, ...]
    side_files: Mapping[str, Path]
    changed_files: Mapping[str, bytes]
    tensors: tuple[str, ...]


def plan_extraction(
    origin: Origin,
    chosen: Mapping[BankKey, tuple[int, ...]],
    scheme: str | SchemeOf = NATIVE,
    dense_schemes: DenseSchemes = NATIVE_EVERYWHERE,
    calibration: CalibrationFacts | None = None,
    allocation: AllocationFacts | None = None,
) -> ExtractionPlan:
    """Plans a store that holds the chosen experts and everything that is not an expert. Reads no tensor.

    Raises:
        CheckpointFileError: If the origin's directory cannot be listed.
    """
    files, changed = origin.side_files(), origin.changed_files()
    plan = StorePlan(
        model=ModelFacts(
            class_name=origin.model.class_name,
            model_type=origin.model.model_type,
            component=_component(origin),
            identity=_UNKNOWN,
        ),
        source=SourceFacts(name=origin.model.name, revision=origin.model.revision, integrity=_UNKNOWN),
        banks=bank_plans(origin, chosen, scheme),
        files=tuple(dict.fromkeys([*files, *changed])),
        ignored=tuple(sorted(origin.model.keymap.ignored)),
        dense_schemes=dense_schemes,
        made_from=origin.made_from,
        calibration=calibration or _kept_calibration(origin, chosen, scheme),
        allocation=allocation or _kept_allocation(origin, chosen, scheme),
    )
    experts = (name for key, ids in chosen.items() for e in ids for name in origin.names_of(key.expert(e)))
    return ExtractionPlan(
        store=plan,
        dense=dense_tensors(origin, dense_schemes),
        side_files=files,
        changed_files=changed,
        # A store has no tensors under the names of weights that are in a scheme, and nothing to download.
        tensors=tuple(
            name for name in origin.stored_names([*origin.model.keymap.dense, *experts]) if name in origin.tensors
        ),
    )


def _kept_calibration(
    origin: Origin, chosen: Mapping[BankKey, tuple[int, ...]], scheme: str | SchemeOf
) -> CalibrationFacts | None:
    """What the codes of experts that are copied as they lie were chosen by; None if none of them were chosen."""
    if origin.calibration is None:
        return None
    scheme_of = one_scheme(scheme)
    keys = (key.expert(expert) for key, ids in chosen.items() for expert in ids)
    kept = any(scheme_of(key) == origin.scheme(key) and origin.errors(key) is not None for key in keys)
    return origin.calibration if kept else None


def _kept_allocation(
    origin: Origin, chosen: Mapping[BankKey, tuple[int, ...]], scheme: str | SchemeOf
) -> AllocationFacts | None:
    """What schemes were allocated by, if all experts are copied as they lie."""
    if origin.allocation is None:
        return None
    scheme_of = one_scheme(scheme)
    copied = {
        key.expert(e)
        for key, ids in chosen.items()
        for e in ids
        if scheme_of(key.expert(e)) == origin.scheme(key.expert(e))
    }
    return origin.allocation if copied >= set(origin.keys()) else None


def bank_plans(
    origin: Origin, chosen: Mapping[BankKey, tuple[int, ...]], scheme: str | SchemeOf = NATIVE
) -> tuple[BankPlan, ...]:
    """All banks of a model with their chosen experts; banks that are not named get none.

    Args:
        origin: Where they come from.
        chosen: Bank → ids.
        scheme: That of all experts, or of each.
    """
    scheme_of = one_scheme(scheme)
    experts = SchemedExperts(origin, scheme_of)

    def planned(key: ExpertKey) -> PlannedExpert:
        return PlannedExpert(expert=key.expert, scheme=scheme_of(key), layout=experts.layout(key))

    return tuple(
        BankPlan(
            key=key,
            num_experts=bank.bank.num_experts,
            top_k=bank.bank.top_k,
            sources=origin.sources(key),
            experts=tuple(planned(key.expert(expert)) for expert in chosen.get(key, ())),
        )
        for key, bank in origin.model.banks.items()
    )


def with_fingerprints(plan: ExtractionPlan, origin: Origin) -> ExtractionPlan:
    """The plan with the fingerprints of model and source; downloads the shards that hold the routers."""
    store = replace(
        plan.store,
        model=replace(plan.store.model, identity=origin.identity),
        source=replace(plan.store.source, integrity=origin.integrity),
    )
    return replace(plan, store=store)


def _component(origin: Origin) -> str | None:
    """The component, or None where the origin is nothing but that component: both open the same."""
    whole = (getattr(origin.model.config, "architectures", None) or [None])[0]
    return None if whole == origin.model.class_name else origin.model.component

"""The stores of a fit: the one whose bits are allocated, and a uniform one of the same size."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.calibration import Calibration
from coterie.extraction import Allocation, AllocationReport, ExtractionReport, ProgressCallback, extract, quantize
from coterie.extraction.allocation import Choice, ComponentChoices
from coterie.extraction.allocation.reporting import matrix_nbytes, matrix_weights, next_to
from coterie.extraction.quantising import record_layouts
from coterie.fitting.report import Allocated, StoreFacts, Uniform
from coterie.fitting.request import FitRequest
from coterie.origins import CheckpointOrigin, Origin, StoreOrigin
from coterie.origins.selection import Selection
from coterie.origins.store_or_checkpoint import find_model
from coterie.origins.store_place import StorePlace
from coterie.quant.registry import SCHEMES
from coterie.spec import ExpertKey
from coterie.spec.encodings import USUAL_SCHEMES
from coterie.spec.parameters import weight_count
from coterie.store import Store

_SEED = 1
"""Of the draw that says which experts of a uniform store between two schemes have which."""

_NEAR = 0.005
"""Bits per weight that are no difference."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a store is made of.

    Attributes:
        model: As the user names it.
        origin: The same, opened.
        request: What is asked for.
        base: The model that this one was pruned of in the same fit; None if it was not.
    """

    model: str | Path
    origin: Origin
    request: FitRequest
    base: Source | None = None

    @classmethod
    def open(cls, model: str | Path, request: FitRequest) -> Source:
        """Opens a checkpoint or a store; downloads the routers of one on the Hub.

        Raises:
            CoterieError: If it cannot be opened.
        """
        found = find_model(model, revision=request.revision, offline=request.offline)
        origin: Origin
        if isinstance(found, StorePlace):
            origin = StoreOrigin.at(found)
        else:
            origin = CheckpointOrigin.open(found, component=request.component)
        return cls(model=model, origin=origin, request=request)

    def pruned(self, store: Path) -> Source:
        """The pruned model, of which a store has been made."""
        return Source(model=store, origin=StoreOrigin.open(store), request=self.request, base=self)

    @property
    def is_store(self) -> bool:
        """Whether it is a store."""
        return isinstance(self.origin, StoreOrigin)

    @property
    def full(self) -> str | Path:
        """What stores are compared with: of a Hub repository the revision that is meant."""
        if self.request.against is not None:
            return self.request.against
        if self.base is not None:
            return self.base.full
        return self.model if self.request.revision is None else self.origin.directory

    @property
    def checkpoint(self) -> str | Path | None:
        """The checkpoint with which a store made of it can be compared, expert by expert; None for a store's."""
        if self.base is not None:
            # Of a checkpoint that was pruned before, what is gone now is not known by its own numbers.
            again = Selection.read(self.base.origin.directory) is not None
            return None if again else self.base.checkpoint
        return None if self.is_store else self.model

    def keys_of(self, component: str) -> list[ExpertKey]:
        """The experts of a component, in order."""
        return sorted(key for key in self.origin.keys() if key.component == component)

    def weights(self) -> int:
        """Weights of all its experts."""
        return sum(weight_count(self.origin.layout(key)) for key in self.origin.keys())

    def make(self, store: Path, how: Mapping[str, Any], progress: ProgressCallback | None) -> ExtractionReport:
        """Makes a store of it, or goes on with one.

        Args:
            store: Its directory.
            how: The schemes or the allocation, and the calibration, as :func:`coterie.extract` takes them.
            progress: Told about bytes and time left.
        """
        request = self.request
        if self.is_store:
            return quantize(
                self.origin.directory,
                store,
                **how,
                dense_scheme=request.dense_scheme,
                offline=request.offline,
                progress=progress,
            )
        return extract(
            self.model,
            store,
            **how,
            component=request.component,
            dense_scheme=request.dense_scheme,
            revision=request.revision,
            offline=request.offline,
            # It is read again, to compare the store with it.
            keep_download=True,
            progress=progress,
        )


def make_allocated(
    source: Source, store: Path, allocation: Allocation, calibration: Calibration, progress: ProgressCallback | None
) -> Allocated:
    """Makes the store, or goes on with it.

    Raises:
        CoterieError: As :func:`coterie.extract` does.
    """
    report = source.make(store, {"allocation": allocation, "calibration": calibration}, progress)
    assert report.allocation is not None, "bits were allocated"
    return Allocated(store=_facts(source, report), allocation=report.allocation)


def make_uniform(
    source: Source, store: Path, like: AllocationReport, calibration: Calibration, progress: ProgressCallback | None
) -> Uniform:
    """Makes a store whose experts all have the same bits, and together as many as those of an allocation.

    Between two schemes, experts that are drawn at random have the larger one, as many as fit. Codes are calibrated as
    those of the other store. If the allocation is of a pruned model, the store is of the model as it was, so that
    having fewer experts is compared with having fewer bits.

    Raises:
        CoterieError: As :func:`coterie.extract` does.
    """
    whole = source.base or source
    schemes: dict[str, str] = {}
    names, same, asked = [], True, 0.0
    error: float | None = 0.0 if source.base is None else None
    total = sum(one.weights for one in like.components)
    nearest: dict[float, str] = {}
    for one in like.components:
        bits, sizes = one.allocation.bits, one.uniform
        if source.base is not None:
            bits, sizes = _before_pruning(whole, one, len(source.keys_of(one.component)))
        nearest |= {size.bits: size.name for size in sizes}
        found = _mix(bits, sizes, whole.keys_of(one.component))
        schemes |= {str(key): scheme for key, scheme in found.schemes.items()}
        names.append(found.name if len(like.components) == 1 else f"{one.component}: {found.name}")
        same = same and found.same_size
        error = None if error is None else error + found.error * one.weights / total
        asked += found.asked
    how = {"expert_schemes": {"schema_version": 1, "experts": schemes}, "calibration": calibration}
    report = whole.make(store, how, progress)
    return Uniform(
        name="; ".join(names),
        nearest=nearest[max(nearest)],
        same_size=same,
        asked_nbytes=asked,
        error=error,
        store=_facts(whole, report),
    )


def _before_pruning(whole: Source, component: ComponentChoices, kept: int) -> tuple[float, tuple[Choice, ...]]:
    """The size of a pruned component in bits per weight of all the experts that the model had, and schemes for these.

    Args:
        whole: The model as it was.
        component: The allocation of what is left.
        kept: Experts that are left.

    Returns:
        Bits per weight, and the schemes next to that, the smaller first; their errors are not known, and 0.
    """
    origin, keys = whole.origin, whole.keys_of(component.component)
    counts = Counter(key.bank_key for key in keys)
    weights = sum(count * matrix_weights(origin, bank) for bank, count in counts.items())
    mean = component.allocation.nbytes / kept
    asked = component.allocation.asked_nbytes / (component.asked_ratio * mean)  # experts that a token asks for
    native = sum(origin.layout(key).payload_nbytes for key in keys)
    bits = component.allocation.bits * component.weights / weights
    sizes = []
    for name in USUAL_SCHEMES:
        layouts = record_layouts(origin, name)
        if sum(layouts[key.bank_key].payload_nbytes for key in keys) >= native:
            continue
        nbytes = sum(layouts[key.bank_key].nbytes for key in keys)
        matrices = sum(count * matrix_nbytes(origin, bank, SCHEMES[name]) for bank, count in counts.items())
        asked_nbytes = round(asked * nbytes / len(keys))
        sizes.append(
            Choice(name=name, bits=8 * matrices / weights, nbytes=nbytes, error=0.0, asked_nbytes=asked_nbytes)
        )
    return bits, next_to(bits, sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mix:
    """The schemes of a component's experts in a uniform store."""

    name: str
    schemes: dict[ExpertKey, str]
    same_size: bool
    error: float
    asked: float


def _mix(wanted: float, uniform: Sequence[Choice], keys: list[ExpertKey]) -> _Mix:
    """As many bits as are wanted, or the nearest scheme where none is so small or so large."""
    below = next((one for one in uniform if one.bits <= wanted), None)
    above = next((one for one in uniform if one.bits > wanted), None)
    alone = below or above
    assert alone is not None, "there are schemes"
    if below is None or above is None or wanted - below.bits < _NEAR:
        return _Mix(
            name=alone.name,
            schemes=dict.fromkeys(keys, alone.name),
            same_size=abs(wanted - alone.bits) < _NEAR,
            error=alone.error,
            asked=alone.asked_nbytes,
        )
    share = (wanted - below.bits) / (above.bits - below.bits)
    drawn = list(keys)
    random.Random(_SEED).shuffle(drawn)
    more = set(drawn[: int(share * len(keys))])

    def between(part: str) -> float:
        low, high = float(getattr(below, part)), float(getattr(above, part))
        return low + len(more) / len(keys) * (high - low)

    return _Mix(
        name=_in_words(below, above, len(keys) - len(more), len(more)),
        schemes={key: above.name if key in more else below.name for key in keys},
        same_size=True,
        error=between("error"),
        asked=between("asked_nbytes"),
    )


def _in_words(below: Choice, above: Choice, fewer: int, more: int) -> str:
    if not more:
        return below.name
    return f"{above.name} for {more} experts drawn at random, {below.name} for the other {fewer}"


def _facts(source: Source, report: ExtractionReport) -> StoreFacts:
    store = Store.open(report.store)
    payload = sum(store.layout(key).payload_nbytes for key in store.keys())
    calibration = store.manifest.calibration
    return StoreFacts(
        experts_present=report.experts_present,
        experts_total=report.experts_total,
        store_nbytes=sum(file.nbytes for file in report.files),
        expert_nbytes=store.manifest.expert_nbytes,
        bits=8 * payload / source.weights(),
        dense_scheme=report.dense_scheme,
        calibration_tokens={} if calibration is None else dict(calibration.tokens),
        seconds=report.seconds,
    )

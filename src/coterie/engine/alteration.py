"""A model as it would be with some of its experts only, or with its experts in other schemes; nothing is written."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from coterie.checkpoint import Checkpoint
from coterie.engine.source import ModelSource
from coterie.errors import UsageError
from coterie.extraction.expert_schemes import ExpertSchemes
from coterie.extraction.quantising import SchemedExperts, check_smaller
from coterie.origins import CheckpointOrigin, Origin, StoreOrigin
from coterie.quant import lossy_scheme
from coterie.spec import BankKey, ExpertKey, ExpertSource, Extent, RecordLayout
from coterie.spec.footprint import READS_AT_ONCE

_WORKSPACE = 3
"""Experts as they are stored that quantising one takes memory for, about: its record, and matrices in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alteration:
    """What a model is opened with instead of what it has.

    Attributes:
        experts: Bank → ids of the experts that are there; banks that are not named keep all. None: all of all.
        schemes: The scheme of all experts, or of each; None: as they are. They are quantised each time they are read,
            to the records that :func:`coterie.quantize` would write.
    """

    experts: Mapping[BankKey, Collection[int]] | None = None
    schemes: str | ExpertSchemes | None = None

    @property
    def fingerprint(self) -> str:
        """Hex digits that differ if alterations do."""
        experts = None if self.experts is None else {str(key): sorted(ids) for key, ids in self.experts.items()}
        schemes = self.schemes
        if isinstance(schemes, ExpertSchemes):
            schemes = repr((sorted(schemes.experts.items(), key=lambda one: one[0]), schemes.rest))
        return hashlib.sha256(json.dumps([experts, schemes], sort_keys=True).encode()).hexdigest()

    def of(self, source: ModelSource) -> ModelSource:
        """The model with it; whoever opens that closes it by :meth:`ModelSource.close`.

        Raises:
            UsageError: If there is no such expert or scheme, or the experts have fewer bits already.
        """
        altered = source if self.schemes is None else _in_schemes(source, self.schemes)
        return altered if self.experts is None else _with_experts(altered, self.experts)


class SelectedExperts:
    """Some experts of a source; an :class:`~coterie.spec.ExpertSource`.

    Args:
        source: The source.
        keys: The experts.
    """

    def __init__(self, source: ExpertSource, keys: Collection[ExpertKey]) -> None:
        self._source = source
        self._keys = keys

    def keys(self) -> Collection[ExpertKey]:
        """Those that were selected."""
        return self._keys

    def layout(self, key: ExpertKey) -> RecordLayout:
        """As the source's."""
        return self._source.layout(key)

    def extents(self, key: ExpertKey) -> tuple[Extent, ...] | None:
        """As the source's."""
        return self._source.extents(key)

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """As the source's."""
        return self._source.read_into(key, record)

    def checksum(self, key: ExpertKey) -> str | None:
        """As the source's."""
        return self._source.checksum(key)


def _with_experts(source: ModelSource, experts: Mapping[BankKey, Collection[int]]) -> ModelSource:
    present = dict(source.present)
    for bank, ids in experts.items():
        lacking = set(ids) - set(present.get(bank, ()))
        if lacking:
            raise UsageError(
                f"{source.name} has no expert {min(lacking)} in {bank}.", bank=str(bank), expert=min(lacking)
            )
        present[bank] = frozenset(ids)
    keys = [key for key in source.experts.keys() if key.expert in present.get(key.bank_key, ())]
    return replace(source, experts=SelectedExperts(source.experts, keys), present=present)


def _in_schemes(source: ModelSource, schemes: str | ExpertSchemes) -> ModelSource:
    origin = origin_of(source)
    if isinstance(schemes, str):
        lossy_scheme(schemes)
        wanted = dict.fromkeys(origin.keys(), schemes)
    else:
        wanted = schemes.of(origin, origin.scheme)
    keys = [key for key in source.experts.keys() if key.bank_key in source.present]
    for have, want in sorted({(origin.scheme(key), wanted[key]) for key in keys}):
        check_smaller(f"Experts of {source.name} are", have, want)
    made = SchemedExperts(origin, wanted.__getitem__)
    # Buffers are counted in records as they become, and hold records as they are.
    ratio = max((origin.layout(key).nbytes / made.layout(key).nbytes for key in keys), default=1.0)
    return replace(
        source,
        experts=SelectedExperts(made, keys),
        schemed=made,
        buffered_reads=READS_AT_ONCE * math.ceil(_WORKSPACE * ratio),
    )


def origin_of(source: ModelSource) -> Origin:
    """The model, as something to make stores of."""
    if source.store is not None:
        return StoreOrigin.open(source.store.path)
    assert isinstance(source.experts, Checkpoint), "what is no store is a checkpoint"
    return CheckpointOrigin(source.experts)

"""The schemes of linear layers outside experts that a store gets: what was asked for, and what else is sensible."""

from __future__ import annotations

import warnings
from typing import Any

from coterie.extraction.dense import parts_with_linears
from coterie.extraction.packed import wanted_of_packed, warn_rounded_twice
from coterie.extraction.quantising import check_smaller
from coterie.hf.configs import has_talker
from coterie.origins import Origin
from coterie.spec.dense_schemes import NATIVE_EVERYWHERE, SPEAKING, DenseRequest, DenseSchemes
from coterie.spec.encodings import NATIVE


def default_dense_schemes(config: Any, request: DenseRequest, *, lossy_experts: bool) -> DenseSchemes:
    """What the parts of a new store get about which nothing is said.

    Args:
        config: The whole configuration of the checkpoint.
        request: What was asked for. If that is a scheme for the rest, it leaves nothing to be chosen.
        lossy_experts: Whether any expert is stored in a lossy scheme. If none is, nothing else loses anything either.
    """
    chosen = lossy_experts and request.rest is None and has_talker(config)
    return SPEAKING if chosen else NATIVE_EVERYWHERE


def settle_dense_schemes(origin: Origin, request: DenseRequest, otherwise: DenseSchemes) -> DenseSchemes:
    """What the parts of a model get. Warns of what is asked for and known to do harm.

    Args:
        origin: What the store is made of.
        request: What was asked for.
        otherwise: What parts get about which nothing was asked.

    Raises:
        UsageError: If a part is named that the model does not have, or the origin has fewer bits of one.
    """
    parts = parts_with_linears(origin)
    settled = request.settle(parts, otherwise, origin.model.class_name)
    have = origin.dense_schemes
    for caution in request.cautions:
        warnings.warn(caution, stacklevel=3)
    if origin.packed_dense.matrices:
        return _settle_packed(origin, parts, settled)
    for part in sorted(parts):
        what = f"Linear layers of the part {part!r}" if have.by_part else "Linear layers outside experts"
        check_smaller(f"{what} are", have.of(part), settled.of(part))
    return settled


def _settle_packed(origin: Origin, parts: frozenset[str], settled: DenseSchemes) -> DenseSchemes:
    """Where weights are packed: those about which nothing is said are kept as they are."""
    have = origin.dense_schemes
    found = {
        part: wanted_of_packed(f"Linear layers of the part {part!r} are", have.of(part), settled.of(part))
        for part in sorted(parts)
    }
    if any(have.of(part) not in (NATIVE, scheme) for part, scheme in found.items()):
        warn_rounded_twice(origin)
    return DenseSchemes.of_parts(found)

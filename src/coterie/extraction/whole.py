"""The plan of a new store with all experts: what there would be if a checkpoint were extracted without a selection."""

from __future__ import annotations

from collections.abc import Mapping

from coterie.extraction.dense_choice import default_dense_schemes, settle_dense_schemes
from coterie.extraction.packed import schemes_of_packed
from coterie.extraction.planning import ExtractionPlan, plan_extraction
from coterie.origins import Origin
from coterie.quant import lossy_scheme
from coterie.spec.dense_schemes import DenseRequest
from coterie.spec.encodings import NATIVE


def plan_whole(
    origin: Origin, scheme: str | None = None, dense_scheme: str | Mapping[str, str] | None = None
) -> ExtractionPlan:
    """Plans a store as :func:`coterie.extract` would make it where there is none. Reads no tensor.

    Args:
        origin: What it would be made of.
        scheme: How experts would be stored; default: ``native``.
        dense_scheme: How linear layers outside experts would be: as :func:`coterie.extract` takes it.

    Raises:
        UsageError: If there is no such scheme or part, or the origin has fewer bits.
    """
    wanted = scheme or NATIVE
    lossy = lossy_scheme(wanted) is not None
    request = DenseRequest.parse(dense_scheme)
    otherwise = default_dense_schemes(origin.model.config, request, lossy_experts=lossy)
    scheme_of = schemes_of_packed(origin, wanted)
    chosen = {key: tuple(range(bank.bank.num_experts)) for key, bank in origin.model.banks.items()}
    return plan_extraction(origin, chosen, scheme_of, settle_dense_schemes(origin, request, otherwise))

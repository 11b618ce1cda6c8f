"""What a store would take in four bits, for somebody who has not said how to store a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.errors import CoterieError
from coterie.extraction.dense import dense_tensors
from coterie.extraction.dense_choice import default_dense_schemes
from coterie.extraction.quantising import record_layouts
from coterie.origins import Origin
from coterie.spec import BankKey
from coterie.spec.dense_schemes import DenseRequest, DenseSchemes

_FOUR_BITS = "int4"


@dataclass(frozen=True, slots=True)
class FourBits:
    """What a store would take with its experts in four bits.

    Attributes:
        nbytes: Bytes of experts and of all else.
        dense_scheme: The scheme of linear layers outside experts; None for what they would have by default.
    """

    nbytes: int
    dense_scheme: str | None

    @classmethod
    def of(cls, origin: Origin, chosen: Mapping[BankKey, tuple[int, ...]]) -> FourBits | None:
        """Adds up; None if some weights cannot be stored so."""
        schemes = default_dense_schemes(origin.model.config, DenseRequest.parse(None), lossy_experts=True)
        has_default = bool(schemes.lossy)
        try:
            layouts = record_layouts(origin, _FOUR_BITS)
            dense = dense_tensors(origin, schemes if has_default else DenseSchemes(_FOUR_BITS))
        except CoterieError:
            return None
        experts = sum(layouts[key].nbytes * len(ids) for key, ids in chosen.items())
        return cls(experts + sum(one.nbytes for one in dense), None if has_default else _FOUR_BITS)

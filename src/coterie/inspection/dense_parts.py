"""How many bytes each part of a model outside its experts has, and in which schemes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from coterie.hf.dense_parts import DenseParts
from coterie.hf.keymap import KeyMap
from coterie.inspection.planned import SchemedLinear
from coterie.spec.dense_parts import DENSE_PARTS
from coterie.spec.encodings import NATIVE


class Sized(Protocol):
    """A tensor, or what tensors hold together."""

    @property
    def nbytes(self) -> int:
        """Bytes, as they are stored."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePartFacts:
    """A part of a model outside its experts.

    Attributes:
        part: Its name, such as ``attention`` or ``encoders``.
        nbytes: Bytes of its tensors, as they are stored.
        schemes: The same by scheme: ``native``, ``int8``, ``int4``.
    """

    part: str
    nbytes: int
    schemes: dict[str, int]


def dense_part_facts(
    skeleton: Any,
    keymap: KeyMap,
    tensors: Mapping[str, Sized],
    linears: Mapping[str, SchemedLinear],
    *,
    prefix: str = "",
) -> tuple[DensePartFacts, ...]:
    """The parts that a model has, in the order of the table of parts.

    Args:
        skeleton: The model on the meta device.
        keymap: Where in it the tensors have their places.
        tensors: Those of a store or a checkpoint that are to be counted, by name.
        linears: Weights of linear layers that are in a scheme, by name.
        prefix: What the names begin with of those that count.
    """
    parts = DenseParts(skeleton, keymap.banks)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, target in keymap.dense.items():
        if not name.startswith(prefix):
            continue
        linear = linears.get(name)
        if linear is not None:
            found[parts.of(target)][linear.scheme.name] += linear.nbytes
        elif name in tensors:
            found[parts.of(target)][NATIVE] += tensors[name].nbytes
    return tuple(
        DensePartFacts(part=part, nbytes=found[part].total(), schemes=dict(sorted(found[part].items())))
        for part in DENSE_PARTS
        if part in found
    )

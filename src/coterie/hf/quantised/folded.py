"""The names of a checkpoint as they would be without quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coterie.spec.packing import Packing


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedNames:
    """The tensors of one packed weight.

    Attributes:
        names: Role → name in the checkpoint.
        packing: How it is packed.
        index: Which entry of the tensors' first dimension is this weight's, where they have those of all experts.
    """

    names: Mapping[str, str]
    packing: Packing
    index: int | None = None


@dataclass(slots=True, kw_only=True)
class FoldedNames:
    """The names of a checkpoint, folded.

    Attributes:
        names: Names as they would be without quantisation.
        parts: Folded name → names of the stored weights and scales, for what is used as it lies.
        packed: Folded name → the tensors of a packed weight.
        unused: Names that dequantising does not need: scales of activations.
        block: Rows and columns of a block that the configuration states.
    """

    names: list[str]
    parts: dict[str, tuple[str, str]] = field(default_factory=dict)
    packed: Mapping[str, PackedNames] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    block: tuple[int, int] | None = None

    def stored(self, name: str) -> tuple[str, ...]:
        """The tensors that make a folded name: those of a quantised weight, or the one of this name."""
        if name in self.packed:
            return tuple(self.packed[name].names.values())
        return self.parts.get(name, (name,))

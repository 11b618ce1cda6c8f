"""The names of a checkpoint as they would be without quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.hf.quantised.packed_names import PackedNames


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

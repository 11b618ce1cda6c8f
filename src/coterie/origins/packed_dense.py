"""Weights outside experts that a checkpoint has packed: which of them a store keeps in their schemes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.checkpoint import PackedWeight
from coterie.errors import UnsupportedError
from coterie.hf.keymap import KeyMap
from coterie.hf.linears import linear_weights
from coterie.quant import SCHEMES, StoredMatrix, stored_linear
from coterie.spec.dense_schemes import NATIVE_EVERYWHERE, DenseSchemes
from coterie.spec.encodings import NATIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedDense:
    """What becomes of packed weights outside experts.

    Attributes:
        schemes: The scheme of each part's linear layers.
        matrices: The weights that are kept in it, by name; the others are dequantised, which loses nothing.
        parts: The part of each of these.
    """

    schemes: DenseSchemes = NATIVE_EVERYWHERE
    matrices: Mapping[str, StoredMatrix] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any, keymap: KeyMap, packed: Mapping[str, PackedWeight]) -> PackedDense:
        """Finds them.

        A part has one scheme. Where a checkpoint has several, that of the most bytes is the part's. What is no weight
        of a linear layer, such as an embedding, has none.

        Args:
            model: The skeleton.
            keymap: The claims of the checkpoint's tensors.
            packed: Its packed weights.
        """
        linears = linear_weights(model, keymap) if packed else {}
        by_part: dict[str, dict[str, StoredMatrix]] = defaultdict(dict)
        nbytes: dict[str, Counter[str]] = defaultdict(Counter)
        for name in linears.keys() & packed.keys():
            weight = packed[name]
            try:
                matrix = stored_linear(name, *weight.shape, SCHEMES[weight.scheme])
            except UnsupportedError:
                continue
            if matrix is not None:
                by_part[linears[name].part][name] = matrix
                nbytes[linears[name].part][matrix.scheme.name] += weight.nbytes
        # Of equals the first by name: the same checkpoint gives the same store.
        chosen = {part: min(found, key=lambda name: (-found[name], name)) for part, found in nbytes.items()}
        if not chosen:
            return cls()
        matrices = {
            name: matrix
            for part, found in by_part.items()
            for name, matrix in found.items()
            if matrix.scheme.name == chosen[part]
        }
        return cls(
            schemes=DenseSchemes.of_parts({one.part: chosen.get(one.part, NATIVE) for one in linears.values()}),
            matrices=matrices,
            parts={name: linears[name].part for name in matrices},
        )

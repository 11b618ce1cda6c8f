"""The weights of a whole omni model, tensor by tensor, in any scheme: each drawn from a seed of its own."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from coterie.spec.encodings import group_count, group_size
from fullsize.coded import GROUP, CodedMatrix, bf16_bits, draw, nearest_bf16
from fullsize.model import ADDED, DenseTensor, FullSizeModel
from fullsize.omni.configuration import Config, talker, thinker

Bits = npt.NDArray[np.uint16]
Shape = tuple[int, ...]

_VALUES = 2**22
"""Weights that are made at once."""

_SEED = 2
_ENDS_A_BRANCH = re.compile(r"\.(o_proj|out_proj|attn\.proj|down_proj|(linear_)?fc2)\.weight$")
"""What is added to a residual stream."""
_TALKER_NAMES = (
    ("talker.model.codec_embedding.", "model.embed_tokens."),
    ("talker.codec_head.", "lm_head."),
    ("talker.model.", "model."),
)
_THINKER_NAMES = (("thinker.lm_head.", "lm_head."), ("thinker.model.", "model."))

_PROJECTION = 0.5
"""Of what the talker reads of the thinker: with the activation between, some .2 beside a code's embedding of 1."""
_OTHER_CODE = 0.05
"""Spread of the embeddings of a frame's other codes: fifteen of them are .2 together."""
_READ_CODE = 4.0
"""Spread of code2wav's embeddings, of which it reads the mean."""


class OmniWeights:
    """The weights.

    Args:
        config: Of the model.
    """

    def __init__(self, config: Config) -> None:
        self.thinker = thinker(config)
        self.talker = talker(config)
        self._parts = {"thinker": (self.thinker, _THINKER_NAMES), "talker": (self.talker, _TALKER_NAMES)}
        self._dense = {part: {one.name: one for one in model.dense()} for part, (model, _) in self._parts.items()}

    def part(self, component: str) -> FullSizeModel:
        """The designed part of the thinker or the talker, which has its experts."""
        return self._parts[component][0]

    def stored(self, name: str, rows: int, columns: int, scheme: str) -> tuple[npt.NDArray[np.generic], ...]:
        """Codes and scales of a linear layer's weight as a scheme has them.

        Args:
            name: The weight.
            rows: Outputs.
            columns: Inputs.
            scheme: ``int4`` or ``int8``; both hold the same values.
        """
        matrix = self._matrix(name, rows, columns)
        size = group_size(columns)
        scales = matrix.scales.repeat(GROUP // size, axis=1)[:, : group_count(columns)]
        cut = CodedMatrix(matrix.packed[:, : -(-columns // 2)], np.ascontiguousarray(scales))
        if scheme == "int4":
            return cut.int4()
        if scheme == "int8":
            return cut.codes(), bf16_bits(cut.scales)
        raise ValueError(f"Weights are not made in {scheme}.")

    def plain(self, name: str, shape: Shape) -> Iterator[Bits]:
        """A tensor in bfloat16, its bits in pieces."""
        known = self._known(name)
        if known is not None and known[1].kind != "coded":
            yield bf16_bits(known[0].plain(known[1])).reshape(-1)
        elif known is not None or self._is_linear(name, shape):
            rows, columns = shape
            matrix = self._matrix(name, rows, columns)
            for first in range(0, rows, height := max(1, _VALUES // columns)):
                yield bf16_bits(matrix.rows(slice(first, first + height)).values()[:, :columns]).reshape(-1)
        elif (value := self._constant(name, shape)) is not None:
            yield np.full(math.prod(shape), bf16_bits(nearest_bf16(np.full((1, 1), value, np.float32)))[0, 0])
        else:
            rng, spread = self._rng(name), self._spread(name, shape)
            for first in range(0, count := math.prod(shape), _VALUES):
                drawn = rng.standard_normal(min(_VALUES, count - first), dtype=np.float32) * np.float32(spread)
                yield bf16_bits(nearest_bf16(drawn))

    def _known(self, name: str) -> tuple[FullSizeModel, DenseTensor] | None:
        """A tensor of the designed parts."""
        for part, (model, names) in self._parts.items():
            for ours, theirs in names:
                if name.startswith(ours):
                    found = self._dense[part].get(theirs + name.removeprefix(ours))
                    return None if found is None else (model, found)
        return None

    def _matrix(self, name: str, rows: int, columns: int) -> CodedMatrix:
        """A weight, its rows filled up to whole groups."""
        known = self._known(name)
        if known is not None:
            return known[0].coded(known[1])
        whole = -(-columns // GROUP) * GROUP
        return draw(self._rng(name), rows, whole, self._gain(name) / math.sqrt(columns))

    @staticmethod
    def _is_linear(name: str, shape: Shape) -> bool:
        return len(shape) == 2 and "embed" not in name

    @staticmethod
    def _gain(name: str) -> float:
        if "_projection." in name:
            return _PROJECTION
        return 1.5 * ADDED if _ENDS_A_BRANCH.search(name) and not name.startswith("code2wav.") else 1.0

    @staticmethod
    def _constant(name: str, shape: Shape) -> float | None:
        if re.search(r"\.(bias|alpha|beta)$", name):
            return 0.0
        if "layer_scale" in name or name.endswith(".gamma"):
            return 0.01
        return 1.0 if len(shape) == 1 else None

    @classmethod
    def _spread(cls, name: str, shape: Shape) -> float:
        if "pos_embed" in name:
            return 0.1
        if name.startswith("talker.") and "embed" in name:
            return _OTHER_CODE
        if "embed" in name and name.startswith("code2wav."):
            return _READ_CODE
        # Inputs come first in the weight of a transposed convolution, each output has two of its steps.
        turned = name.startswith("code2wav.") and (
            ".block.1.conv" in name or ("upsample" in name and ".0.conv" in name)
        )
        return cls._gain(name) / math.sqrt(2 * shape[0] if turned else math.prod(shape[1:]))

    @staticmethod
    def _rng(name: str) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([_SEED, zlib.crc32(name.encode())]))

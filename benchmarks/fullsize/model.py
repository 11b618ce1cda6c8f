"""The weights of a full-size model: each tensor drawn from a seed of its own, in any order, as often as needed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from fullsize import walk as design
from fullsize.coded import CODE_SPREAD, GROUP, CodedMatrix, Floats, draw, encode, nearest_bf16
from synthetic import Dimensions

ADDED = 0.02
"""Root mean square of what attention, and experts, add to the residual stream in each layer; an embedding's is 1."""

ROUTER_SPREAD = 1.5
"""Standard deviation of router logits."""

PEAK_LOGIT = 32
"""The logit of the next token of the walk."""

_EMBEDDING_STEP = 1 / CODE_SPREAD
_ROWS = 4096
# √E[(silu(g)·u)²] for standard normal g and u, times the root of the sum of squared gate weights of eight experts.
_EXPERT_GAIN = 0.6 * 0.4

Kind = Literal["coded", "router", "norm"]


class DenseTensor(NamedTuple):
    """A tensor that is not an expert.

    Attributes:
        name: In a checkpoint.
        gguf: In a GGUF file.
        shape: Its shape.
        kind: How its values are stored.
    """

    name: str
    gguf: str
    shape: tuple[int, ...]
    kind: Kind


@dataclass(frozen=True)
class Expert:
    """The matrices of one expert."""

    gate: CodedMatrix
    up: CodedMatrix
    down: CodedMatrix


class FullSizeModel:
    """A Qwen3-MoE model of designed routing.

    Args:
        dimensions: Its size; inputs of matrices are multiples of 64.
        seed: Of everything random.
        never_said: Ids that are not in the walk. The model takes one for the last id of the walk, and says none.

    Raises:
        ValueError: If an input is no multiple of 64, or there are more ids than texts for them.
    """

    def __init__(self, dimensions: Dimensions, seed: int = 0, never_said: Sequence[int] = ()) -> None:
        inputs = dimensions.hidden, dimensions.expert_hidden, dimensions.heads * dimensions.head_dim
        if any(each % GROUP for each in inputs):
            raise ValueError(f"Inputs of matrices must be multiples of {GROUP}, not {inputs}.")
        if design.token_of("zzz") < dimensions.vocabulary:
            raise ValueError(f"There are texts for {design.token_of('zzz') + 1} ids, not {dimensions.vocabulary}.")
        self.dimensions = dimensions
        self.seed = seed
        self.never_said = tuple(never_said)

    @cached_property
    def walk(self) -> design.Walk:
        """The order of the token ids."""
        return design.Walk(self.dimensions.vocabulary, self._rng("walk"), self.never_said)

    def dense(self) -> Iterator[DenseTensor]:
        """Everything that is not an expert, in a fixed order."""
        d = self.dimensions
        yield DenseTensor("model.embed_tokens.weight", "token_embd.weight", (d.vocabulary, d.hidden), "coded")
        yield DenseTensor("lm_head.weight", "output.weight", (d.vocabulary, d.hidden), "coded")
        yield DenseTensor("model.norm.weight", "output_norm.weight", (d.hidden,), "norm")
        for layer in range(d.layers):
            ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
            for name, heads in (("q", d.heads), ("k", d.kv_heads), ("v", d.kv_heads)):
                shape = (heads * d.head_dim, d.hidden)
                yield DenseTensor(
                    f"{ours}.self_attn.{name}_proj.weight", f"{theirs}.attn_{name}.weight", shape, "coded"
                )
            shape = (d.hidden, d.heads * d.head_dim)
            yield DenseTensor(f"{ours}.self_attn.o_proj.weight", f"{theirs}.attn_output.weight", shape, "coded")
            for name in ("q_norm", "k_norm"):
                yield DenseTensor(
                    f"{ours}.self_attn.{name}.weight", f"{theirs}.attn_{name}.weight", (d.head_dim,), "norm"
                )
            for name, short in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")):
                yield DenseTensor(f"{ours}.{name}.weight", f"{theirs}.{short}.weight", (d.hidden,), "norm")
            yield DenseTensor(
                f"{ours}.mlp.gate.weight", f"{theirs}.ffn_gate_inp.weight", (d.experts, d.hidden), "router"
            )

    def coded(self, tensor: DenseTensor) -> CodedMatrix:
        """A tensor of kind ``coded``."""
        if tensor.name == "model.embed_tokens.weight":
            return self._embedding
        if tensor.name == "lm_head.weight":
            return self._head
        rows, columns = tensor.shape
        gain = ADDED if ".o_proj." in tensor.name else 1.0
        return draw(self._rng(tensor.name), rows, columns, gain / math.sqrt(columns))

    def plain(self, tensor: DenseTensor) -> Floats:
        """A tensor of kind ``router`` or ``norm``: float32 values that are bfloat16, too."""
        if tensor.kind == "router":
            spread = ROUTER_SPREAD / math.sqrt(self.dimensions.hidden)
            return nearest_bf16(self._rng(tensor.name).standard_normal(tensor.shape, dtype=np.float32) * spread)
        value = 1.0
        if tensor.name == "model.norm.weight":
            value = 2.0 ** round(math.log2(PEAK_LOGIT / self.dimensions.hidden))
        return np.full(tensor.shape, value, dtype=np.float32)

    def expert(self, layer: int, expert: int) -> Expert:
        """All of an expert."""
        return Expert(
            gate=self.expert_matrix(layer, expert, "gate"),
            up=self.expert_matrix(layer, expert, "up"),
            down=self.expert_matrix(layer, expert, "down"),
        )

    def expert_matrix(self, layer: int, expert: int, name: Literal["gate", "up", "down"]) -> CodedMatrix:
        """``gate`` or ``up`` [expert_hidden, hidden], or ``down`` [hidden, expert_hidden] of an expert."""
        hidden, inner = self.dimensions.hidden, self.dimensions.expert_hidden
        rng = self._rng(f"layers.{layer}.experts.{expert}.{name}")
        if name == "down":
            return draw(rng, hidden, inner, ADDED / _EXPERT_GAIN / math.sqrt(inner))
        return draw(rng, inner, hidden, 1 / math.sqrt(hidden))

    @cached_property
    def _embedding(self) -> CodedMatrix:
        hidden, topics = self.dimensions.hidden, self.walk.topics
        rng = self._rng("directions")
        by_topic = math.sqrt(design.TOPIC) * rng.standard_normal((design.TOPICS, hidden), dtype=np.float32)
        common = math.sqrt(design.STATIC) * rng.standard_normal(hidden, dtype=np.float32)
        packed = np.empty((len(topics), hidden // 2), dtype=np.uint8)
        scales = np.empty((len(topics), hidden // GROUP), dtype=np.float32)
        for first in range(0, len(topics), _ROWS):
            rows = slice(first, min(first + _ROWS, len(topics)))
            own = self._rng(f"tokens.{first}").standard_normal((rows.stop - first, hidden), dtype=np.float32)
            part = encode(by_topic[topics[rows]] + common + math.sqrt(design.TOKEN) * own, _EMBEDDING_STEP)
            packed[rows], scales[rows] = part.packed, part.scales
        if self.never_said:
            # The one after the last is the first of the walk.
            packed[list(self.never_said)] = packed[self.walk.order[-1]]
            scales[list(self.never_said)] = scales[self.walk.order[-1]]
        return CodedMatrix(packed, scales)

    @property
    def _head(self) -> CodedMatrix:
        head = self._embedding.rows(self.walk.predecessors)
        head.scales[list(self.never_said)] = 0
        return head

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([self.seed, zlib.crc32(name.encode())]))

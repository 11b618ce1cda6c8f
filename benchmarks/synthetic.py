"""Writes Qwen3-MoE checkpoints of any size with random bf16 weights, in bounded memory and at the disk's speed.

The default dimensions are those of Qwen3-30B-A3B with fewer layers: one layer is 1.2 GB of experts. Values are
sign and mantissa at random with one exponent, so that models run without overflow, and nothing can be compressed.
Routers are scaled so that routing spreads over the experts. The same arguments give the same bytes.

    python benchmarks/synthetic.py OUT --layers 4
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PIECE = 16 * 2**20
_ONE = 0x3F80  # 1.0 in bf16
_BF16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """What makes the size of a Qwen3-MoE model."""

    layers: int = 2
    experts: int = 128
    top_k: int = 8
    hidden: int = 2048
    expert_hidden: int = 768
    heads: int = 32
    kv_heads: int = 4
    head_dim: int = 128
    vocabulary: int = 8192

    @property
    def expert_nbytes(self) -> int:
        """Bytes of one expert."""
        return 3 * self.hidden * self.expert_hidden * _BF16_BYTES

    @property
    def experts_nbytes(self) -> int:
        """Bytes of all experts."""
        return self.layers * self.experts * self.expert_nbytes

    def config(self) -> dict[str, object]:
        """The content of ``config.json``."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "num_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "moe_intermediate_size": self.expert_hidden,
            "intermediate_size": self.expert_hidden * 4,
            "vocab_size": self.vocabulary,
            "norm_topk_prob": True,
            "tie_word_embeddings": False,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, layer by layer."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            for name, outputs in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                yield f"{prefix}.self_attn.{name}_proj.weight", (outputs * self.head_dim, self.hidden)
            yield f"{prefix}.self_attn.o_proj.weight", (self.hidden, self.heads * self.head_dim)
            for name in ("q_norm", "k_norm"):
                yield f"{prefix}.self_attn.{name}.weight", (self.head_dim,)
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{prefix}.{name}.weight", (self.hidden,)
            yield f"{prefix}.mlp.gate.weight", (self.experts, self.hidden)
            for expert in range(self.experts):
                stem = f"{prefix}.mlp.experts.{expert}"
                yield f"{stem}.gate_proj.weight", (self.expert_hidden, self.hidden)
                yield f"{stem}.up_proj.weight", (self.expert_hidden, self.hidden)
                yield f"{stem}.down_proj.weight", (self.hidden, self.expert_hidden)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)


def write_checkpoint(
    directory: Path, dimensions: Dimensions, *, shard_bytes: int = 4 * 10**9, seed: int = 0, normal: bool = False
) -> Path:
    """Writes a checkpoint and returns its directory.

    Args:
        directory: Made if need be; files of the same names are replaced.
        dimensions: Size of the model.
        shard_bytes: Bytes of tensors per file.
        seed: Of the random weights.
        normal: Whether weights are normally distributed, as trained ones nearly are: for what depends on how they are
            distributed. Takes longer.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dimensions.config(), indent=2) + "\n")
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, shape in dimensions.tensors():
        nbytes = math.prod(shape) * _BF16_BYTES
        if shards[-1] and filled + nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += nbytes
    rng = np.random.Generator(np.random.SFC64(seed))
    files = [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    if len(shards) == 1:
        files = ["model.safetensors"]
    else:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name, _ in shard}
        index = {"metadata": {"total_size": _BF16_BYTES * sum(math.prod(s) for shard in shards for _, s in shard)}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": weight_map}))
    for file, shard in zip(files, shards, strict=True):
        _write_shard(directory / file, shard, rng, normal)
    return directory


def _write_shard(
    path: Path, tensors: list[tuple[str, tuple[int, ...]]], rng: np.random.Generator, normal: bool
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        nbytes = math.prod(shape) * _BF16_BYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            for count in _pieces(math.prod(shape)):
                file.write((_normal_values if normal else _values)(name, shape, count, rng))


def _pieces(elements: int) -> Iterator[int]:
    while elements > 0:
        yield min(elements, _PIECE)
        elements -= _PIECE


def _values(name: str, shape: tuple[int, ...], count: int, rng: np.random.Generator) -> bytes:
    """``count`` bf16 values: ones for norms, else ±[2^e, 2^(e+1)) with a mean square of about 1 / inputs."""
    if len(shape) == 1:
        return np.full(count, _ONE, dtype="<u2").tobytes()
    exponent = 127 + math.floor(math.log2(_spread(name, shape) / 1.53))
    noise = np.frombuffer(rng.bytes(count), dtype=np.uint8).astype("<u2")
    return (((noise & 0x80) << 8) | np.uint16(exponent << 7) | (noise & 0x7F)).tobytes()


def _normal_values(name: str, shape: tuple[int, ...], count: int, rng: np.random.Generator) -> bytes:
    """``count`` bf16 values: ones for norms, else normal ones with a mean square of about 1 / inputs."""
    if len(shape) == 1:
        return np.full(count, _ONE, dtype="<u2").tobytes()
    values = rng.standard_normal(count, dtype=np.float32) * np.float32(_spread(name, shape))
    return ((values.view("<u4") + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2").tobytes()


def _spread(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of a matrix's weights."""
    spread = 1.0 if "embed" in name else shape[-1] ** -0.5
    return spread * 4 if name.endswith("mlp.gate.weight") else spread


def main() -> int:
    """Writes the checkpoint that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    defaults = Dimensions()
    for name in Dimensions.__slots__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    parser.add_argument("--shard-bytes", type=int, default=4 * 10**9)
    given = vars(parser.parse_args())
    out, shard_bytes = given.pop("out"), given.pop("shard_bytes")
    dimensions = Dimensions(**given)
    write_checkpoint(out, dimensions, shard_bytes=shard_bytes)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e9:.2f} GB, experts {dimensions.experts_nbytes / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

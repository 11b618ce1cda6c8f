"""Which model takes how much: download, store in four bits, memory. Nothing is measured, everything is computed.

    python benchmarks/model_sizes.py

For each model a checkpoint of the released shape is laid out as files without content: the configuration, and a
safetensors file of the right header and size that takes no room on the disk. It is asked what anybody asks about a
downloaded one: a plan of extraction says what the download and a four-bit store take (experts that are released in
MXFP4, which is four bits, stay so), and the arithmetic of `coterie plan` in how much memory it works and
in how much all experts stay. Speed is copied from what bench_peers.py measured, for the one shape that it did.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from coterie.checkpoint import Checkpoint
from coterie.extraction.whole import plan_whole
from coterie.hf.context import default_context
from coterie.hf.skeleton import build_skeleton
from coterie.inspection import MemoryFit, memory_fit
from coterie.inspection.planned import planned_footprint
from coterie.origins import CheckpointOrigin
from harness.report import RESULTS, Table

_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.uint8: "U8", torch.int64: "I64", torch.bool: "BOOL"}
_SCHEME = "int4"
_MXFP4_GROUP = 32


@dataclass(frozen=True, kw_only=True)
class Released:
    """A released model.

    Attributes:
        name: On the Hub.
        class_name: transformers' class of it.
        config_class: And of its configuration.
        billions: Weights that its authors state, in 10⁹, to check the shape below against.
        shape: What its configuration says that differs from the class's defaults.
        mxfp4: Whether experts are released in MXFP4.
        speed: The shape under which bench_peers.py measured it, if it did.
    """

    name: str
    class_name: str
    config_class: str
    billions: float
    shape: dict[str, Any] = field(default_factory=dict)
    mxfp4: bool = False
    speed: str | None = None


MODELS = (
    Released(
        name="allenai/OLMoE-1B-7B-0924",
        class_name="OlmoeForCausalLM",
        config_class="OlmoeConfig",
        billions=6.92,
        shape={"intermediate_size": 1024, "num_hidden_layers": 16, "num_experts": 64, "vocab_size": 50304},
    ),
    Released(
        name="deepseek-ai/DeepSeek-V2-Lite",
        class_name="DeepseekV2ForCausalLM",
        config_class="DeepseekV2Config",
        billions=15.7,
        shape={
            "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
            "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2,
            "num_experts_per_tok": 6, "first_k_dense_replace": 1, "kv_lora_rank": 512, "q_lora_rank": None,
            "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "head_dim": 64, "vocab_size": 102400,
            "max_position_embeddings": 163840, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
        },
    ),
    Released(
        name="openai/gpt-oss-20b",
        class_name="GptOssForCausalLM",
        config_class="GptOssConfig",
        billions=20.9,
        shape={
            "num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 4, "hidden_size": 2880,
            "intermediate_size": 2880, "vocab_size": 201088,
        },
        mxfp4=True,
    ),
    Released(
        name="Qwen/Qwen3-30B-A3B",
        class_name="Qwen3MoeForCausalLM",
        config_class="Qwen3MoeConfig",
        billions=30.5,
        shape={
            "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
            "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
            "intermediate_size": 6144, "vocab_size": 151936, "max_position_embeddings": 40960,
        },
        speed="qwen3-30b-a3b",
    ),
    Released(
        name="Qwen/Qwen3-Omni-30B-A3B-Thinking",
        class_name="Qwen3OmniMoeThinkerForConditionalGeneration",
        config_class="Qwen3OmniMoeThinkerConfig",
        billions=31.7,
        shape={
            "text_config": {
                "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
                "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
                "vocab_size": 152064, "max_position_embeddings": 65536,
            },
            "vision_config": {"out_hidden_size": 2048},
            "audio_config": {"output_dim": 2048},
        },
    ),
    Released(
        name="mistralai/Mixtral-8x7B-Instruct-v0.1",
        class_name="MixtralForCausalLM",
        config_class="MixtralConfig",
        billions=46.7,
        shape={"num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8, "num_hidden_layers": 32},
    ),
    Released(
        name="zai-org/GLM-4.5-Air",
        class_name="Glm4MoeForCausalLM",
        config_class="Glm4MoeConfig",
        billions=106.85,
        shape={
            "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 46,
            "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "n_routed_experts": 128,
            "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
            "vocab_size": 151552, "max_position_embeddings": 131072, "attention_bias": True, "use_qk_norm": False,
        },
    ),
    Released(
        name="openai/gpt-oss-120b",
        class_name="GptOssForCausalLM",
        config_class="GptOssConfig",
        billions=116.8,
        shape={
            "num_hidden_layers": 36, "num_local_experts": 128, "num_experts_per_tok": 4, "hidden_size": 2880,
            "intermediate_size": 2880, "vocab_size": 201088,
        },
        mxfp4=True,
    ),
)  # fmt: skip
"""By size. Shapes as their config.json on the Hub has them."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model takes, in bytes."""

    weights: int
    download: int
    store: int
    least: int
    all_experts: int


def sizes(model: Released, folder: Path) -> Sizes:
    """Lays a model out without content and asks what it takes."""
    lay_out(model, folder)
    checkpoint = Checkpoint.open(folder)
    scheme = "native" if model.mxfp4 else _SCHEME
    plan = plan_whole(CheckpointOrigin(checkpoint), scheme, _SCHEME)
    records = [one.layout.nbytes for bank in plan.store.banks for one in bank.experts]
    dense = sum(tensor.nbytes for tensor in plan.dense)
    config = checkpoint.skeleton.config
    footprint = planned_footprint(checkpoint, plan)
    context = default_context(config)

    def fits(memory: int) -> MemoryFit:
        return memory_fit(memory, footprint, context=context, record_sizes=records, working_set_nbytes=0)

    return Sizes(
        weights=weights_of(checkpoint.skeleton),
        download=sum(info.nbytes for info in checkpoint.tensors.values()),
        store=dense + footprint.experts,
        least=smallest(lambda memory: fits(memory).enough),
        all_experts=smallest(lambda memory: fits(memory).share == 1.0),
    )


def smallest(enough: Callable[[int], bool]) -> int:
    """The smallest budget, to 64 MiB, that is enough."""
    step, low, high = 64 << 20, 0, 1 << 14
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle * step) else (middle, high)
    return high * step


def weights_of(model: Any) -> int:
    """Numbers in all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def lay_out(model: Released, folder: Path) -> None:
    """Writes configuration, header and nothing else; the file has its whole size and takes no room."""
    import transformers

    config = getattr(transformers, model.config_class)(**model.shape)
    config.architectures, config.dtype = [model.class_name], torch.bfloat16
    if model.mxfp4:
        config.quantization_config = {"quant_method": "mxfp4"}
    config.save_pretrained(folder)
    skeleton = build_skeleton(getattr(transformers, model.class_name), config, torch.bfloat16)
    counted = weights_of(skeleton) / 1e9
    if abs(counted / model.billions - 1) > 0.01:
        raise SystemExit(f"{model.name} has {model.billions} billion weights, this shape has {counted:.2f}.")
    header: dict[str, object] = {}
    end = 0
    for name, dtype, shape, nbytes in tensors(skeleton, mxfp4=model.mxfp4):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def tensors(skeleton: Any, *, mxfp4: bool) -> Iterator[tuple[str, str, list[int], int]]:
    """Name, dtype, shape and bytes of every tensor of a checkpoint."""
    for name, tensor in skeleton.state_dict().items():
        shape = list(tensor.shape)
        if mxfp4 and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, columns, rows = shape
            groups = columns // _MXFP4_GROUP
            yield f"{name}_blocks", "U8", [experts, rows, groups, _MXFP4_GROUP // 2], experts * rows * columns // 2
            yield f"{name}_scales", "U8", [experts, rows, groups], experts * rows * groups
        else:
            yield name, _DTYPES[tensor.dtype], shape, tensor.numel() * tensor.dtype.itemsize


def measured(shape: str | None) -> str:
    """What bench_peers.py measured of this shape, or that it was not."""
    if shape is None:
        return "not measured"
    found = {row[0]: row[1] for row in _rows((RESULTS / "peers_summary.md").read_text(encoding="utf-8"), shape)}
    return f"{found['decode, start in 8 GiB']} (8 GiB) … {found['decode, in memory']}"


def _rows(text: str, shape: str) -> list[list[str]]:
    if not text.startswith(shape):
        raise SystemExit(f"peers_summary.md is not about {shape}.")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def main() -> int:
    """Prints the table and writes it for publish.py."""
    table = Table(
        "Sizes are computed for a context of 4,096 tokens, the default; speed is measured on 2 cores:",
        ("model", "download", "store", "works in", "all experts stay in", "decode"),
    )
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            found = sizes(model, Path(folder))
        figures = map(gib, (found.download, found.store, found.least, found.all_experts))
        table.rows.append((model.name, *figures, measured(model.speed)))
        print(f"{model.name}: {found.weights / 1e9:.2f} billion weights", file=sys.stderr)
    text = table.markdown()
    print(text)
    (RESULTS / "model_sizes.md").write_text(text + "\n", encoding="utf-8")
    return 0


def gib(nbytes: int) -> str:
    """For people, in GiB."""
    return f"{nbytes / 2**30:.1f} GiB"


if __name__ == "__main__":
    sys.exit(main())

"""Every class of transformers that routes, tiny, with random weights: on its own or in the block that it serves."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from coterie.errors import UnsupportedError
from coterie.routing import find_router
from zoo import MATRIX

CLASSES = {
    "AXK1TopkRouter": "axk1",
    "AXK2TopkRouter": "axk2",
    "AfmoeTokenChoiceRouter": "afmoe",
    "AriaTextTopKRouter": "aria_text",
    "BailingHybridTopkRouter": "bailing_hybrid",
    "BeamTopKRouter": "beam",
    "Cohere2MoeTopKRouter": "cohere2_moe",
    "DeepseekOcr2TextTopkRouter": "deepseek_ocr2",
    "DeepseekV2TopkRouter": "deepseek_v2",
    "DeepseekV32TopkRouter": "deepseek_v32",
    "DeepseekV3TopkRouter": "deepseek_v3",
    "DeepseekV4TopKRouter": "deepseek_v4",
    "DiffusionGemmaTextRouter": "diffusion_gemma",
    "Dots1TopkRouter": "dots1",
    "Dots3NoteTextTopkRouter": "dots3_note_text",
    "Dots3NoteVisionTopKRouter": "dots3_note",
    "Ernie4_5_MoeTopKRouter": "ernie4_5_moe",
    "Ernie4_5_VLMoeMoeTopKRouter": "ernie4_5_vl_moe",
    "ExaoneMoeTopkRouter": "exaone_moe",
    "FlexOlmoTopKRouter": "flex_olmo",
    "FlintTopKRouter": "flint",
    "Gemma4TextRouter": "gemma4_text",
    "Glm4MoeLiteTopkRouter": "glm4_moe_lite",
    "Glm4MoeTopkRouter": "glm4_moe",
    "Glm4vMoeTextTopkRouter": "glm4v_moe",
    "Glm5NextTextTopkRouter": "glm5_next",
    "GlmMoeDsaTopkRouter": "glm_moe_dsa",
    "GptOssTopKRouter": "gpt_oss",
    "GraniteMoeHybridTopKRouter": "granitemoehybrid",
    "GraniteMoeSWATopKRouter": "granitemoe_swa",
    "GraniteMoeSharedTopKRouter": "granitemoeshared",
    "GraniteMoeTopKRouter": "granitemoe",
    "HYV3TopKRouter": "hy_v3",
    "HYV4TopkRouter": "hy_v4",
    "HYV4VLTopkRouter": "hy_v4_vl",
    "HunYuanMoEV1Gate": "hunyuan_v1_moe",
    "Inkling2LoopTopKRouter": "inkling2_loop_text",
    "Inkling2TopKRouter": "inkling2_text",
    "InklingTopkRouter": "inkling_text",
    "JambaTopKRouter": "jamba",
    "KimiLinearTopkRouter": "kimi_linear",
    "Kolibri1TopKRouter": "kolibri1",
    "LagunaTopKRouter": "laguna",
    "LaraMiniTopKRouter": "lara_mini",
    "Lfm2MoeTopKRouter": "lfm2_moe",
    "MellumTopKRouter": "mellum",
    "MiMoV2FlashTopkRouter": "mimo_v2_flash",
    "MiniMaxM2TopKRouter": "minimax_m2",
    "MiniMaxM3VLTopKRouter": "minimax_m3_vl_text",
    "MiniMaxTopKRouter": "minimax",
    "Mistral4TopkRouter": "mistral4",
    "MistralLarge4TextTopkRouter": "mistral_large4",
    "MixtralTopKRouter": "mixtral",
    "MuseSparkTopkRouter": "muse_spark",
    "NemotronHTopkRouter": "nemotron_h",
    "OlmoeTopKRouter": "olmoe",
    "OpenAIPrivacyFilterTopKRouter": "openai_privacy_filter",
    "PhimoeTopKRouter": "phimoe",
    "Qwen2MoeTopKRouter": "qwen2_moe",
    "Qwen3MoeTopKRouter": "qwen3_moe",
    "Qwen3NextTopKRouter": "qwen3_next",
    "Qwen3OmniMoeTalkerTextTopKRouter": "qwen3_omni",
    "Qwen3OmniMoeThinkerTextTopKRouter": "qwen3_omni_thinker",
    "Qwen3VLMoeTextTopKRouter": "qwen3_vl_moe",
    "Qwen3_5MoeTopKRouter": "qwen3_5_moe_text",
    "Qwen4ExpTextTopKRouter": "qwen4_exp_text",
    "SolarOpenTopkRouter": "solar_open",
    "UnlimitedOcrTextTopkRouter": "unlimited_ocr",
    "ZayaRouter": "zaya",
}
"""Router class → a model of the matrix that has it."""

E, H, K = 8, 16, 3
_SIZES = {
    "hidden_size": H,
    "num_experts": E,
    "num_local_experts": E,
    "n_routed_experts": E,
    "moe_num_experts": E,
    "num_experts_per_tok": K,
    "moe_top_k": K,
    "moe_topk": K,
    "top_k": K,
    "routed_scaling_factor": 1.5,
    "moe_router_scaling_factor": 1.5,
    "norm_topk_prob": True,
    "zero_expert_num": 2,
    "router_bias": False,
    "router_dtype": "float32",
    "router_jitter_noise": 0.0,
    "router_ignore_padding_tokens": False,
    "expert_capacity": 64,
    "second_expert_policy": "all",
    "normalize_router_prob_before_dropping": True,
    "batch_prioritized_routing": False,
    "moe_eval_capacity_token_fraction": 1.0,
}
ALONE = {
    "JetMoeTopKGating": "jetmoe",
    "Llama4Router": "llama4",
    "LongcatFlashTopkRouter": "longcat_flash",
    "NllbMoeTop2Router": "nllb_moe",
    "Qwen3OmniMoeTextTopKRouter": "qwen3_omni_moe",
    "Step3p7TopKRouter": "step3p7",
    "SwitchTransformersTop1Router": "switch_transformers",
}
"""Router class → module of transformers, for those that are made of a configuration's sizes alone."""

_WANTS_3D = frozenset({"AfmoeTokenChoiceRouter", "ZayaRouter"})
_KEEPS_FLOAT32 = frozenset({"Inkling2LoopTopKRouter", "Inkling2TopKRouter"})
"""Classes whose weights transformers keeps in float32 in models of any dtype."""


class Routed(NamedTuple):
    """What a router gave.

    Attributes:
        outputs: Everything.
        ids: int64 [T, K].
        weights: [T, K].
        logits: [T, E], or what the class gives in their place; where it gives none, those of its product.
    """

    outputs: tuple[object, ...]
    ids: torch.Tensor
    weights: torch.Tensor
    logits: torch.Tensor


def block_of(class_name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A fresh block of a model of the matrix whose router is of this class, on the CPU."""
    block = copy.deepcopy(_block(class_name))
    return block.to(dtype)


def router_of(class_name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A fresh router of this class, on the CPU."""
    if class_name in ALONE:
        return copy.deepcopy(_alone(class_name)).to(dtype)
    if hasattr(type(_block(class_name)), "route_tokens_to_experts"):
        pytest.skip("in this transformers the block routes by itself")
    return find_router(block_of(class_name, torch.float32 if class_name in _KEEPS_FLOAT32 else dtype)).module


@functools.cache
def _block(class_name: str) -> nn.Module:
    model = MATRIX[CLASSES[class_name]]
    if reason := model.why_not:
        pytest.skip(reason)
    for path, module in _skeleton(CLASSES[class_name]).named_modules():
        try:
            slot = find_router(module)
        except UnsupportedError:
            continue
        if type(slot.module).__name__ == class_name:
            # Only what routes is needed: experts may be large, and layers hold attention.
            for name in list(module._modules):
                if name != slot.attribute and not path.endswith(slot.attribute):
                    del module._modules[name]
            return _filled(module)
    pytest.skip(f"this transformers has no {class_name}")


@functools.cache
def _skeleton(name: str) -> nn.Module:
    with torch.device("meta"):
        return MATRIX[name].model_class(MATRIX[name].config()).eval()


@functools.cache
def _alone(class_name: str) -> nn.Module:
    name = ALONE[class_name]
    try:
        cls = getattr(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), class_name)
    except (ImportError, AttributeError):
        pytest.skip(f"this transformers has no {class_name}")
    if class_name == "JetMoeTopKGating":
        return _filled(cls(H, E, K))
    return _filled(cls(SimpleNamespace(**_SIZES)))


def _filled(module: nn.Module) -> nn.Module:
    """Random weights that spread the scores, so that routing does not hang on rounding."""
    module = module.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(5)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point():
            tensor.data.zero_()
            continue
        scale = 0.3 if name.endswith(("bias", "biases")) else 1.0 if tensor.ndim < 2 else 3.0 / tensor.shape[-1] ** 0.5
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * scale)
        if tensor.ndim < 2 and not name.endswith(("bias", "biases")):
            tensor.data.abs_().add_(0.5)
    for part in module.modules():
        for buffer_name, buffer in part.named_buffers(recurse=False):
            if buffer_name in part._non_persistent_buffers_set:
                buffer.fill_(0.5)
        for name, value in part.__dict__.items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                part.__dict__[name] = torch.full(value.shape, 0.5)
    return module


def hidden_size(router: nn.Module) -> int:
    for name in ("hidden_dim", "hidden_size"):
        if isinstance(getattr(router, name, None), int):
            return getattr(router, name)
    return max(p.shape[1] for p in router.parameters() if p.ndim == 2)


def inputs(router: nn.Module, dtype: torch.dtype = torch.float32, tokens: int = 24) -> dict[str, torch.Tensor]:
    """Arguments of a router: hidden states, and what its block gives it besides."""
    generator = torch.Generator().manual_seed(2)
    cls = getattr(router, "stock_class", type(router))
    hidden = torch.randn(tokens, hidden_size(router), generator=generator).to(dtype)
    arguments = {}
    for name in inspect.signature(cls.forward).parameters:
        if name == "hidden_states":
            arguments[name] = hidden[None] if cls.__name__ in _WANTS_3D else hidden
        elif name.endswith("bias"):
            arguments[name] = torch.randn(width_of(router), generator=generator) * 0.3
    return arguments


def width_of(router: nn.Module) -> int:
    """How many a router chooses from."""
    for name in ("num_router_classes", "n_routed_experts", "num_experts"):
        if isinstance(getattr(router, name, None), int):
            return getattr(router, name)
    return next(p.shape[0] for p in router.parameters() if p.ndim == 2)


def route(router: nn.Module, arguments: dict[str, torch.Tensor]) -> Routed:
    """Runs a router; what it gives is told by shape and place, as releases differ in the order."""
    with torch.no_grad():
        outputs = tuple(router(**{name: value.clone() for name, value in arguments.items()}))
    at, ids = next((i, o) for i, o in enumerate(outputs) if o.dtype == torch.int64 and o.ndim == 2)
    # With all experts chosen logits have the shape of weights, too; these stand beside the ids.
    beside = [i for i in (at + 1, at - 1) if 0 <= i < len(outputs)]
    of_weights = next(i for i in beside if outputs[i].is_floating_point() and outputs[i].shape == ids.shape)
    others = [o for i, o in enumerate(outputs) if i not in (at, of_weights) and o.is_floating_point()]
    if others:
        return Routed(outputs, ids, outputs[of_weights], others[0])
    weight = next(p for p in reversed(list(router.parameters())) if p.ndim == 2)
    logits = torch.nn.functional.linear(next(iter(arguments.values())).float(), weight.float()).detach()
    return Routed(outputs, ids, outputs[of_weights], logits)


def same(got: tuple[object, ...], expected: tuple[object, ...]) -> bool:
    """Whether outputs are equal bit for bit."""
    return len(got) == len(expected) and all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(got, expected, strict=True)
    )

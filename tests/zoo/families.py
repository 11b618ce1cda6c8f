"""The models of the zoo: class, configuration and what may be put in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedConfig, PreTrainedModel

from zoo.inputs import example_inputs
from zoo.omni import omni_config, qwen3_vl_config, thinker_config
from zoo.sizes import TEXT
from zoo.weights import build


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooModel:
    """One tiny model.

    Attributes:
        name: Its name in the zoo.
        class_name: The class in transformers.
        config: Makes its configuration; called anew for every use.
        modalities: What it takes: ``text``, ``image``, ``audio``.
        generates: Whether it writes text.
        sees_with_experts: Whether some of its experts are for pictures alone.
    """

    name: str
    class_name: str
    config: Callable[[], PreTrainedConfig]
    modalities: tuple[str, ...] = ("text",)
    generates: bool = True
    sees_with_experts: bool = False
    config_name: str | None = None

    @property
    def why_not(self) -> str | None:
        """Why the installed transformers cannot have this model streamed, or None."""
        for name in (self.class_name, self.config_name):
            if name is not None and not hasattr(transformers, name):
                return f"transformers {transformers.__version__} has no {name}"
        release, reason = _BROKEN_UP_TO.get(self.name, ("0", ""))
        if Version(transformers.__version__) < Version(release):
            return f"transformers {transformers.__version__}: {reason}"
        return None

    @property
    def model_class(self) -> type[PreTrainedModel]:
        cls: type[PreTrainedModel] = getattr(transformers, self.class_name)
        return cls

    def build(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model in memory, with the weights that its checkpoint has."""
        return build(self.model_class, self.config(), dtype)

    def inputs(
        self, seed: int = 0, batch: int = 1, length: int = 24, *, image: bool = False, audio: bool = False
    ) -> dict[str, torch.Tensor]:
        """Keyword arguments of ``forward`` and ``generate``: ids ``[batch, length]`` and what the modalities need."""
        absent = {"image": image, "audio": audio}
        for modality, wanted in absent.items():
            if wanted and modality not in self.modalities:
                raise ValueError(f"{self.name} takes no {modality}")
        return example_inputs(_read_only_config(self), seed, batch, length, image=image, audio=audio)


@functools.cache
def _read_only_config(model: ZooModel) -> PreTrainedConfig:
    """To look sizes up in: transformers takes long to make one."""
    return model.config()


# Seen in 5.7; the release that mended it was not looked for.
_BROKEN_UP_TO = {
    "deepseek_v2": ("5.8", "its group-limited routing raises AttributeError in transformers itself"),
    "dbrx": ("5.8", "it takes the width of its experts for that of the model"),
    "granitemoe": ("5.8", "its experts class is not one that can be hooked"),
    "granitemoeshared": ("5.8", "its experts class is not one that can be hooked"),
    "granitemoehybrid": ("5.8", "its experts class is not one that can be hooked"),
    "aria": ("5.23", "its experts class is not one that can be hooked"),
    "aria_text": ("5.23", "its experts class is not one that can be hooked"),
    "deepseek_v4": ("5.23", "it multiplies float32 by bfloat16, which raises RuntimeError in transformers itself"),
}


def _text_config(class_name: str, **options: Any) -> PreTrainedConfig:
    config: PreTrainedConfig = getattr(transformers, class_name)(**TEXT | options)
    return config


_EXPERTS = {"num_experts": 8, "moe_intermediate_size": 32}
_LOCAL_EXPERTS = {"num_local_experts": 8, "intermediate_size": 32}
_ROUTED = {"n_routed_experts": 8, "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1}
_GROUPS = {"n_group": 4, "topk_group": 2}
# Latent attention has keys and values for every head; with fewer, masked attention fails in transformers itself.
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
_LATENT |= {"num_key_value_heads": 4}
_LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_MAMBA = {
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "attn_layer_period": 4,
    "attn_layer_offset": 2,
    "use_mamba_kernels": False,
    "mamba_dt_rank": 4,
}

_TEXT_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", _EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", _EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        _EXPERTS
        | _LINEAR
        | {
            "head_dim": 16,
            "shared_expert_intermediate_size": 32,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _LOCAL_EXPERTS),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", {"num_experts": 8, "intermediate_size": 32}),
    "deepseek_v2": (
        "DeepseekV2ForCausalLM",
        "DeepseekV2Config",
        _ROUTED | _LATENT | _GROUPS | {"topk_method": "group_limited_greedy", "head_dim": 8},
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", _ROUTED | _LATENT | _GROUPS),
    "glm4_moe": ("Glm4MoeForCausalLM", "Glm4MoeConfig", _ROUTED | {"head_dim": 16, "use_qk_norm": True}),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        _LOCAL_EXPERTS
        | {
            "intermediate_size": 48,  # not square: the experts are transposed
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phimoe": ("PhimoeForCausalLM", "PhimoeConfig", _LOCAL_EXPERTS),
    "granitemoe": (
        "GraniteMoeForCausalLM",
        "GraniteMoeConfig",
        _LOCAL_EXPERTS | {"attention_multiplier": 0.25, "logits_scaling": 0.5, "residual_multiplier": 0.7},
    ),
    "minimax": (
        "MiniMaxForCausalLM",
        "MiniMaxConfig",
        _LOCAL_EXPERTS | {"head_dim": 16, "block_size": 8, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeForCausalLM",
        "Ernie4_5_MoeConfig",
        {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 1},
    ),
    "lfm2_moe": (
        "Lfm2MoeForCausalLM",
        "Lfm2MoeConfig",
        _EXPERTS | {"num_hidden_layers": 3, "num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    "jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        {"num_experts": 8, "intermediate_size": 32, "num_hidden_layers": 4} | _MAMBA,
    ),
}
for _name in ("deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe"):  # the first layer is dense
    _TEXT_MODELS[_name][2]["num_hidden_layers"] = 3

_OTHER_MODELS = (
    ZooModel(
        name="qwen3_vl_moe",
        class_name="Qwen3VLMoeForConditionalGeneration",
        config=qwen3_vl_config,
        modalities=("text", "image"),
    ),
    ZooModel(
        name="qwen3_omni_thinker",
        class_name="Qwen3OmniMoeThinkerForConditionalGeneration",
        config=thinker_config,
        modalities=("text", "image", "audio"),
    ),
    ZooModel(
        name="qwen3_omni",
        class_name="Qwen3OmniMoeForConditionalGeneration",
        config=omni_config,
        modalities=("text", "image", "audio"),
    ),
)

ZOO: dict[str, ZooModel] = {
    name: ZooModel(name=name, class_name=model_class, config=partial(_text_config, config_class, **options))
    for name, (model_class, config_class, options) in _TEXT_MODELS.items()
} | {model.name: model for model in _OTHER_MODELS}
"""Every model of the zoo by name."""

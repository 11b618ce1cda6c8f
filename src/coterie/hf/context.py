"""The dimensions of a model that its memory in use depends on, read from its configuration."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch

from coterie.hf.configs import COMPONENTS, parts_of
from coterie.hf.last_logits import can_be_given, makes_all
from coterie.hf.releases import broken
from coterie.spec import LAST_POSITIONS, ContextShape
from coterie.spec.context import SpeechShape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

DEFAULT_CONTEXT = 4096
"""Tokens that a budget provides for where the caller states none and the model allows them."""


def text_configs(config: PreTrainedConfig) -> list[Any]:
    """The configurations of every part that keeps keys and values of a whole sequence."""
    holders = [getattr(config, f"{name}_config", None) for name in COMPONENTS]
    return [
        holder.get_text_config(decoder=True) for holder in [part for part in holders if part is not None] or [config]
    ]


def default_context(config: PreTrainedConfig) -> int:
    """``DEFAULT_CONTEXT``, or what the model was made for if that is less."""
    return min(DEFAULT_CONTEXT, model_context(config) or DEFAULT_CONTEXT)


def model_context(config: PreTrainedConfig) -> int | None:
    """The longest sequence that the model was made for, or None if its configuration does not say."""
    limits = [getattr(part, "max_position_embeddings", None) for part in text_configs(config)[:1]]
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def context_shape(config: PreTrainedConfig, dtype: torch.dtype, model_class: type[PreTrainedModel]) -> ContextShape:
    """The dimensions that memory in use depends on; for several parts, the largest of each (caches are added up)."""
    classes = parts_of(model_class, config)
    return _shape(
        text_configs(config),
        classes,
        dtype.itemsize,
        model_class,
        encoder_per_token=_encoder_per_token(config, dtype.itemsize),
        speech=_speech_shape(config, classes, dtype.itemsize),
    )


def _shape(
    parts: list[Any],
    classes: list[tuple[type[PreTrainedModel] | None, Any]],
    itemsize: int,
    model_class: type[PreTrainedModel],
    *,
    encoder_per_token: int = 0,
    speech: SpeechShape | None = None,
) -> ContextShape:
    return ContextShape(
        hidden=max(_needed(p, "hidden_size", "d_model", "n_embd") for p in parts),
        attention=max(_heads(p) * _head_dim(p) for p in parts),
        kv_per_token=sum(sum(_kv_widths(p)) for p in parts) * itemsize,
        kv_per_copy=max(max(_kv_widths(p), default=0) for p in parts) * itemsize,
        intermediate=max(
            _number(p, "intermediate_size", "ffn_hidden_size", "d_ff", "moe_intermediate_size") for p in parts
        ),
        experts=max(
            _number(p, "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts") for p in parts
        ),
        top_k=max(
            _number(p, "num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
            for p in parts
        ),
        vocabulary=max(_needed(p, "vocab_size") for p in parts),
        itemsize=itemsize,
        score_heads=max(_heads(p) if _makes_scores(p, model_class) else 0 for p in parts),
        last_positions=LAST_POSITIONS if any(one is not None and can_be_given(one) for one, _ in classes) else 1,
        all_logits=max(
            _needed(part.get_text_config(decoder=True), "vocab_size") if one is None or makes_all(one) else 0
            for one, part in classes
        ),
        encoder_per_token=encoder_per_token,
        speech=speech,
    )


def _speech_shape(
    config: PreTrainedConfig, classes: list[tuple[type[PreTrainedModel] | None, Any]], itemsize: int
) -> SpeechShape | None:
    """Of a talker with its code predictor, and of the vocoder where the model is a whole one."""
    whole = getattr(config, "talker_config", None)
    talker = whole or config
    predictor = getattr(talker, "code_predictor_config", None)
    found = next(((one, part) for one, part in classes if part is talker), None)
    if predictor is None or found is None or found[0] is None:
        return None
    vocoder = getattr(config, "code2wav_config", None)
    groups = _number(predictor, "num_code_groups")
    return SpeechShape(
        talker=_shape([talker.get_text_config(decoder=True)], [found], itemsize, found[0]),
        predictor_kv=2 * groups * sum(_kv_widths(predictor)) * itemsize,
        kept_per_token=0 if whole is None else 2 * _number(talker, "thinker_hidden_size") * itemsize,
        vocoder_per_frame=0 if vocoder is None else SpeechShape.frame_nbytes(_widest_stage(vocoder), itemsize),
    )


def _widest_stage(vocoder: Any) -> int:
    """Values that stand for a frame in a vocoder's widest stage: channels × samples, which grow as channels halve."""
    samples = int(prod(vocoder.upsampling_ratios))
    widths = [_number(vocoder, "hidden_size") * samples]
    for stage, rate in enumerate(vocoder.upsample_rates):
        samples *= rate
        widths.append(max(1, _number(vocoder, "decoder_dim") // 2 ** (stage + 1)) * samples)
    return max(widths)


def _encoder_per_token(config: PreTrainedConfig, itemsize: int) -> int:
    """Bytes that an encoder takes per token that comes of a picture or sound; of the wider one.

    Per patch or frame ten rows of its width, two of its feed-forward's, and what goes in; for sounds also the maps of
    the first convolution, which has half the frames and half the frequencies, eight frames making a token.
    """
    holder = getattr(config, "thinker_config", None) or config
    vision, audio = getattr(holder, "vision_config", None), getattr(holder, "audio_config", None)
    widths = [0]
    if vision is not None:
        pixels = _number(vision, "in_channels") * _number(vision, "temporal_patch_size")
        pixels *= _number(vision, "patch_size") ** 2
        rows = 10 * _number(vision, "hidden_size") + 2 * _number(vision, "intermediate_size") + 2 * pixels
        widths.append(_number(vision, "spatial_merge_size") ** 2 * rows)
    if audio is not None:
        maps = 3 * _number(audio, "downsample_hidden_size") * _number(audio, "num_mel_bins")
        widths.append(10 * _number(audio, "d_model") + 2 * _number(audio, "encoder_ffn_dim") + maps)
    return max(widths) * itemsize


def _makes_scores(config: Any, model_class: type[PreTrainedModel]) -> bool:
    """Whether attention is not fused: by the class's choice, or because torch only fuses heads of one width."""
    if not model_class._supports_sdpa:
        return True
    latent = bool(getattr(config, "kv_lora_rank", None))
    return latent and _mla_key_dim(config) != _number(config, "v_head_dim")


def _number(config: Any, *names: str) -> int:
    for name in names:
        value = _value(config, name)
        if isinstance(value, (list, tuple)) and value:
            value = max(value)
        if isinstance(value, int) and value > 0:
            return value
    return 1


def _value(config: Any, name: str) -> Any:
    """What a configuration says, or None; the largest where it says another thing for each layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # transformers' own for what differs from layer to layer is no AttributeError
        values = [getattr(layer, name, None) for layer in config.per_layer_config]
        return max((value for value in values if isinstance(value, int)), default=None)


def _needed(config: Any, *names: str) -> int:
    """A size that every model has.

    Raises:
        ContractError: If the configuration has it under none of these names: the budget would not hold.
    """
    if all(_value(config, name) is None for name in names):
        what = f"A {type(config).__name__} has none of {', '.join(names)}, which memory in use depends on."
        raise broken("configurations name sizes as they did", what)
    return _number(config, *names)


def _layers(config: Any) -> int:
    """Layers that keep keys and values; some models pass several times through some, and keep all of it."""
    return _needed(config, "total_num_hidden_layers", "num_hidden_layers", "num_layers", "n_layer")


def _heads(config: Any) -> int:
    return _needed(config, "num_attention_heads", "n_head", "num_heads")


def _head_dim(config: Any) -> int:
    if getattr(config, "kv_lora_rank", None):
        # Multi-head latent attention: transformers caches keys and values expanded to all heads.
        return max(_number(config, "qk_head_dim"), _mla_key_dim(config))
    # Where layers without a window have wider heads, older releases give these a name of their own.
    stated = [size for name in ("head_dim", "global_head_dim") if isinstance(size := _value(config, name), int)]
    return max(stated) if stated else max(1, _number(config, "hidden_size", "d_model") // _heads(config))


def _mla_key_dim(config: Any) -> int:
    return _number(config, "qk_nope_head_dim") + _number(config, "qk_rope_head_dim")


def _kv_widths(config: Any) -> list[int]:
    count, each = _layers(config), getattr(config, "per_layer_config", None)
    if each is not None and len(each) == count:
        return [_kv_width(one) for one in each]
    return [_kv_width(config)] * count


def _kv_width(config: Any) -> int:
    if getattr(config, "kv_lora_rank", None):
        return _heads(config) * (_mla_key_dim(config) + _number(config, "v_head_dim"))
    kv_heads = _value(config, "num_key_value_heads")
    if isinstance(kv_heads, (list, tuple)) and kv_heads:
        kv_heads = max(kv_heads)
    return 2 * (kv_heads if isinstance(kv_heads, int) else _heads(config)) * _head_dim(config)

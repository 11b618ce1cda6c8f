"""What the readers of transformers' internals rely on."""

from __future__ import annotations

import functools
import importlib
import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from coterie.hf.caches import cached_length, caches_in, holds_state, is_cache
from coterie.hf.contract import Contract, expect

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_PLACES: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("core_model_loading", "rename_source_key", ("source_key", "weight_renamings", "weight_converters"), "hf.keymap"),
    ("core_model_loading", "WeightConverter.add_tensor", ("target_key", "source_key", "source_pattern", "future"),
     "hf.decoding"),
    ("core_model_loading", "WeightConverter.convert", ("layer_name", "model", "config"), "hf.decoding"),
    ("core_model_loading", "WeightRenaming", ("source_patterns", "target_patterns"), "hf.keymap"),
    ("core_model_loading", "MergeModulelist", ("dim",), "hf.decoding"),
    ("core_model_loading", "Concatenate", ("dim",), "hf.decoding"),
    ("core_model_loading", "ErnieFuseAndSplitTextVisionExperts", ("stack_dim", "concat_dim"), "hf.decoding"),
    ("core_model_loading", "dot_natural_key", ("s",), "hf.keymap"),
    ("conversion_mapping", "get_model_conversion_mapping", ("model",), "hf.keymap"),
    ("conversion_mapping", "get_checkpoint_conversion_mapping", ("model_type",), "hf.keymap"),
    ("modeling_utils", "PreTrainedModel._adjust_missing_and_unexpected_keys", ("loading_info",), "hf.keymap"),
    ("modeling_utils", "PreTrainedModel._from_config", ("config", "kwargs"), "hf.skeleton"),
    ("modeling_utils", "PreTrainedModel._get_dtype_plan", ("dtype",), "hf.linears"),
    ("configuration_utils", "PreTrainedConfig.get_text_config", ("decoder",), "hf.context"),
)  # fmt: skip
"""Module, name, parameters that are used, follower."""


def place(
    module: str,
    name: str,
    parameters: tuple[str, ...],
    follower: str,
    *,
    protects: str = "Checkpoints are read with transformers' own functions.",
    essential: bool = True,
) -> Contract:
    """The contract that something is where it was, and takes what it took.

    Args:
        module: Below ``transformers``.
        name: In it, with dots.
        parameters: Those that Coterie gives.
        follower: Below ``coterie``.
        protects: As of every contract.
        essential: Likewise.
    """

    def check() -> None:
        thing: Any = importlib.import_module(f"transformers.{module}")
        for part in name.split("."):
            thing = getattr(thing, part)
        lacking = sorted(set(parameters) - set(inspect.signature(thing).parameters)) if parameters else []
        expect(not lacking, f"transformers.{module}.{name} has no parameter {', '.join(map(repr, lacking))}.")

    return Contract(
        name=f"{module}.{name} is there",
        protects=protects,
        follower=f"coterie.{follower}",
        check=check,
        essential=essential,
    )


def tiny_config(**sizes: Any) -> PreTrainedConfig:
    """A configuration of a model that takes no time."""
    from transformers import Qwen3MoeConfig

    usual = {
        "vocab_size": 32, "hidden_size": 16, "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    config: PreTrainedConfig = Qwen3MoeConfig(**usual | sizes)
    return config


@functools.cache
def tiny_skeleton() -> PreTrainedModel:
    """A model without weights."""
    from transformers import Qwen3MoeForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = Qwen3MoeForCausalLM._from_config(tiny_config(), dtype=torch.float32)
    return model


def _experts_are_decorated() -> None:
    module: Any = tiny_skeleton().get_submodule("model.layers.0.mlp.experts")
    for name in ("has_gate", "has_bias", "is_transposed", "_apply_gate"):
        expect(hasattr(module, name), f"Experts have no {name}.")
    forward = getattr(type(module).forward, "__wrapped__", None)
    expect(forward is not None, "The class's own forward is hidden.")
    parameters = list(inspect.signature(forward or type(module).forward).parameters)
    expect(
        parameters == ["self", "hidden_states", "top_k_index", "top_k_weights"],
        f"Experts are called with {parameters}.",
    )


def _one_forward_is_common() -> None:
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    sources = [inspect.getsource(inspect.unwrap(cls.forward)) for cls in (Qwen3MoeExperts, MixtralExperts)]
    expect(sources[0] == sources[1], "Mixtral's experts compute otherwise than Qwen3-MoE's.")


def _names_become_parameters() -> None:
    from transformers import core_model_loading as loading
    from transformers.conversion_mapping import get_model_conversion_mapping

    transforms = get_model_conversion_mapping(tiny_skeleton())
    converters = [one for one in transforms if isinstance(one, loading.WeightConverter)]
    renamings = [one for one in transforms if isinstance(one, loading.WeightRenaming)]
    name = "model.layers.0.mlp.experts.3.gate_proj.weight"
    renamed, pattern = loading.rename_source_key(name, renamings, converters, "model", tiny_skeleton().state_dict())
    expect(renamed == "model.layers.0.mlp.experts.gate_up_proj", f"{name} becomes {renamed}.")
    (converter,) = [one for one in converters if pattern in one.source_patterns]
    for attribute in ("source_patterns", "target_patterns", "operations"):
        expect(hasattr(converter, attribute), f"Converters have no {attribute}.")


def _a_converter_converts_one_expert() -> None:
    from transformers import core_model_loading as loading

    merge, join = loading.MergeModulelist(dim=0), loading.Concatenate(dim=1)
    converter = loading.WeightConverter(["a.*.gate", "a.*.up"], "a.gate_up", operations=[merge, join])
    gate, up = torch.full((2, 3), 1.0), torch.full((2, 3), 2.0)
    for pattern, name, tensor in (("a.*.gate", "a.0.gate", gate), ("a.*.up", "a.0.up", up)):
        converter.add_tensor("a.gate_up", name, pattern, tensor)
    made = converter.convert("a.gate_up", model=tiny_skeleton(), config=tiny_skeleton().config)["a.gate_up"]
    made = made[0] if isinstance(made, list) else made
    expect(torch.equal(made, torch.cat([gate, up])[None]), "One expert's tensors are converted otherwise.")


def _the_model_says_what_may_be_missing() -> None:
    model = tiny_skeleton()
    info = SimpleNamespace(missing_keys={"model.norm.weight"}, unexpected_keys={"odd.weight"})
    model._adjust_missing_and_unexpected_keys(info)
    found = info.missing_keys, info.unexpected_keys
    expect(found == ({"model.norm.weight"}, {"odd.weight"}), f"Missing and unexpected names become {found}.")
    for name in ("base_model_prefix", "all_tied_weights_keys", "_supports_sdpa"):
        expect(hasattr(model, name), f"Models have no {name}.")


def _marks_are_where_they_were() -> None:
    modules = ("models.jamba.modeling_jamba", "quantizers.base", "modeling_utils")
    sources = [inspect.getsource(importlib.import_module(f"transformers.{name}")) for name in modules]
    expect(any("_is_quantized" in source for source in sources), "A quantised model is not marked by _is_quantized.")


def _grown(cache: Any, tokens: int, layer: int = 0) -> Any:
    cache.update(torch.zeros(1, 1, tokens, 8), torch.zeros(1, 1, tokens, 8), layer)
    return cache


def _caches_count_tokens() -> None:
    from transformers import DynamicCache, EncoderDecoderCache, StaticCache

    caches = {
        "DynamicCache": DynamicCache(),
        "StaticCache": StaticCache(config=tiny_config(), max_cache_len=8),
        "a cache that grows at its second layer": DynamicCache(),
    }
    for name, cache in caches.items():
        expect(is_cache(cache), f"{name} is no Cache.")
        expect(cached_length(cache) == 0 and not holds_state(cache), f"An empty {name} counts tokens.")
        for tokens in (3, 4):
            _grown(cache, tokens - 3 or 3, layer=name.startswith("a cache"))
            expect(cached_length(cache) == tokens, f"{name} counts {cached_length(cache)} tokens of {tokens}.")
    both = EncoderDecoderCache(_grown(DynamicCache(), 2), _grown(DynamicCache(), 5))
    expect(caches_in([None, {"x": (both,)}]) == [both], "EncoderDecoderCache is no Cache.")
    expect(cached_length(both) == 2, f"EncoderDecoderCache counts {cached_length(both)} tokens of 2.")


def _a_plain_layer_is_its_keys_and_values() -> None:
    from transformers import DynamicCache

    cache = _grown(DynamicCache(), 2)
    layer = cache.layers[0]
    before = {name: value for name, value in vars(layer).items() if name not in ("keys", "values")}
    _grown(cache, 1)
    after = {name: value for name, value in vars(layer).items() if name not in ("keys", "values")}
    expect(before == after, f"A layer keeps more than keys and values: {before} becomes {after}.")
    expect(layer.is_initialized and layer.keys.shape == layer.values.shape == (1, 1, 3, 8), "Its tensors differ.")


def _sizes_are_named_as_they_were() -> None:
    from coterie.hf.context import context_shape, model_context

    model = tiny_skeleton()
    shape = context_shape(model.config, torch.float32, type(model))
    found = (shape.hidden, shape.attention, shape.kv_per_token, shape.experts, shape.top_k, shape.vocabulary)
    expect(found == (16, 16, 2 * 8 * 4, 4, 2, 32), f"Sizes of the tiny model are read as {found}.")
    expect(not shape.all_logits, "The forward does not take logits_to_keep.")
    expect(bool(model_context(model.config)), "Configurations have no max_position_embeddings.")


def _generation_asks_for_the_last_logits() -> None:
    from transformers import GenerationMixin, Qwen3OmniMoeThinkerForConditionalGeneration

    from coterie.hf.last_logits import PARAMETER, can_be_given, output_head

    model = tiny_skeleton()
    expect(output_head(model) is model.lm_head, "The head of the tiny model is not found.")
    expect(can_be_given(Qwen3OmniMoeThinkerForConditionalGeneration), "The thinker does not end in an lm_head.")
    asks = GenerationMixin._supports_logits_to_keep
    known: Any = inspect.signature(lambda **kwargs: None)
    parameter = inspect.Parameter(PARAMETER, inspect.Parameter.KEYWORD_ONLY, default=0)

    def forward(**kwargs: Any) -> None:
        """Takes anything."""

    model.__dict__["forward"] = forward
    expect(not asks(model), "A forward that takes anything counts as one that takes logits_to_keep.")
    forward.__dict__["__signature__"] = known.replace(parameters=[parameter, *known.parameters.values()])
    expect(asks(model), "A signature with logits_to_keep does not count.")


def _recorders_are_known() -> None:
    from transformers import Qwen3MoeForCausalLM

    from coterie.hf.recorders import only_idle_recorders

    model = Qwen3MoeForCausalLM(tiny_config()).eval()
    with torch.no_grad():
        model(torch.tensor([[1, 2]]), output_hidden_states=True, output_router_logits=True)
    hooked = [module._forward_hooks for module in model.modules() if module._forward_hooks]
    expect(all(only_idle_recorders(hooks) for hooks in hooked), "Hooks that record outputs are not known as such.")


def _answers_are_taken_apart() -> None:
    from types import SimpleNamespace
    from typing import cast

    from coterie.hf.responses import parse_response, response_form

    template = {"start_anchor": "a:", "fields": {"content": {}, "thinking": {"open": "<", "close": ">"}}}
    parts = {"content": {"type": "string", "x-regex": ">(.*)"}, "thinking": {"type": "string", "x-regex": "<(.*)>"}}
    said = SimpleNamespace(response_template=template, response_schema={"type": "object", "properties": parts})
    form = response_form(cast(Any, said))
    expect(form is not None, "Its parser of answers is elsewhere.")
    assert form is not None
    found = parse_response(form, "<b>c", prompt="a:")
    expect(found == {"thinking": "b", "content": "c"}, "Its parser of answers finds other parts.")


READING = "Tensors of a checkpoint reach the module that they belong to."
MEMORY = "The budget is kept: what a context takes is known before it is taken."
EXACT = "Experts are computed as the class computes them, to the bit."
ANSWERS = "Thoughts and calls are found in answers whose form only their tokenizer knows; without it they are text."
SPEED = "Decode steps take the short way; without it they are slower, and right."

CONTRACTS: tuple[Contract, ...] = (
    *(place(*row) for row in _PLACES),
    Contract(name="experts classes are decorated", protects=EXACT, follower="coterie.hf.banks",
             check=_experts_are_decorated),
    Contract(name="most experts classes share one forward", protects=SPEED, follower="coterie.hf.experts",
             check=_one_forward_is_common, essential=False),
    Contract(name="checkpoint names become parameters", protects=READING, follower="coterie.hf.keymap",
             check=_names_become_parameters),
    Contract(name="a converter converts one expert", protects=READING, follower="coterie.hf.decoding",
             check=_a_converter_converts_one_expert),
    Contract(name="a model says which names may be missing", protects=READING, follower="coterie.hf.keymap",
             check=_the_model_says_what_may_be_missing),
    Contract(name="quantised models are marked as they were", protects=EXACT, follower="coterie.integration.quantizer",
             check=_marks_are_where_they_were),
    Contract(name="caches count their tokens", protects=MEMORY, follower="coterie.hf.caches",
             check=_caches_count_tokens),
    Contract(name="a layer of a cache is its keys and values", protects=EXACT,
             follower="coterie.integration.growing_cache", check=_a_plain_layer_is_its_keys_and_values),
    Contract(name="configurations name sizes as they did", protects=MEMORY, follower="coterie.hf.context",
             check=_sizes_are_named_as_they_were),
    Contract(name="generation asks for the last logits", protects=MEMORY, follower="coterie.hf.last_logits",
             check=_generation_asks_for_the_last_logits, essential=False),
    Contract(name="recorded outputs leave known hooks", protects=SPEED, follower="coterie.hf.recorders",
             check=_recorders_are_known, essential=False),
    Contract(name="answers are taken apart as tokenizers say", protects=ANSWERS, follower="coterie.hf.response_process",
             check=_answers_are_taken_apart, essential=False),
)  # fmt: skip
"""All of them, in the order in which they are shown."""

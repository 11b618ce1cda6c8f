"""What the plug-in and the watch over forward passes rely on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from coterie.errors import ContextLengthError
from coterie.hf.caches import is_cache
from coterie.hf.contract import Broken, Contract, expect
from coterie.hf.contracts import EXACT, MEMORY, READING, place, tiny_config
from coterie.integration.code_predictor import NativeCodePredictor
from coterie.integration.norms import install_native_norms
from coterie.integration.token_forwards import install_native_layers
from coterie.kernels import QuantisedLinear
from coterie.native import library
from coterie.passes.clock import StepClock
from coterie.passes.forwards import at, own, remove
from coterie.quant import SCHEMES, StoredMatrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROMPT, _NEW = 5, 4
_WIDTH = 64
"""Of the code predictor that is tried."""
_PLACES: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("quantizers.base", "HfQuantizer._process_model_before_weight_loading", ("model",), "integration.quantizer"),
    ("quantizers.auto", "register_quantizer", ("name",), "integration.quantizer"),
    ("quantizers.auto", "register_quantization_config", ("method",), "integration.quantizer"),
    ("utils.quantization_config", "QuantizationConfigMixin", (), "integration.quantizer"),
)


def _the_plug_in_sees_the_skeleton() -> None:
    from transformers import Qwen3MoeForCausalLM

    from coterie.integration.quantizer import StreamingConfig, register

    seen: list[Any] = []

    def attach(model: Any) -> None:
        seen.append(model)
        module = model.model.layers[0].mlp.experts
        expect(module.gate_up_proj.is_meta, "Experts are allocated before the plug-in is called.")
        for name in ("gate_up_proj", "down_proj"):
            del module._parameters[name]
            module.__dict__[name] = SimpleNamespace(_is_hf_initialized=True)
        module.__dict__["_is_hf_initialized"] = True

    register()
    with _same_random_numbers():
        whole = Qwen3MoeForCausalLM(tiny_config())
        dense = {name: value for name, value in whole.state_dict().items() if ".experts." not in name}
        model, info = Qwen3MoeForCausalLM.from_pretrained(
            None, config=tiny_config(), state_dict=dense, quantization_config=StreamingConfig(attach),
            experts_implementation="eager", output_loading_info=True,
        )  # fmt: skip
    expect(seen == [model], "The plug-in is not called, or with another model.")
    expect(not info["missing_keys"], f"{sorted(info['missing_keys'])} are missing without the experts.")
    expect(torch.equal(model.model.norm.weight, whole.model.norm.weight), "Dense weights are not taken.")


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Leaves the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        yield


def _watched_model() -> tuple[PreTrainedModel, StepClock]:
    from transformers import Qwen3MoeForCausalLM

    with _same_random_numbers():
        model: PreTrainedModel = Qwen3MoeForCausalLM(tiny_config()).eval()
    clock = StepClock("text", [])
    clock.install(model)
    return model, clock


def _generate(model: Any, **options: Any) -> None:
    ids = torch.arange(1, _PROMPT + 1)[None]
    model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=_NEW, do_sample=False, eos_token_id=None,
        pad_token_id=0, **options,
    )  # fmt: skip


def _steps_show_their_cache() -> None:
    model, clock = _watched_model()
    for options in ({}, {"cache_implementation": "static"}):
        before = dict(clock.tokens)
        _generate(model, **options)
        found = {phase: count - before[phase] for phase, count in clock.tokens.items()}
        expect(
            found == {"prefill": _PROMPT, "decode": _NEW - 1},
            f"A prompt of {_PROMPT} tokens and {_NEW - 1} steps are taken for {found} ({options or 'usual cache'}).",
        )


def _without_a_cache_nothing_is_kept() -> None:
    model, clock = _watched_model()
    _generate(model, use_cache=False)
    expect(clock.tokens["decode"] == 0, "Steps without a cache are taken for steps that have one.")


def _too_long_a_text_is_refused() -> None:
    model, clock = _watched_model()
    clock.max_context = _PROMPT + 1
    try:
        _generate(model)
    except ContextLengthError:
        return
    raise Broken(f"{_PROMPT + _NEW} tokens pass a limit of {_PROMPT + 1}.")


def _a_code_predictor_is_what_is_computed_natively() -> None:
    predictor = _rounded_code_predictor()
    native = own(predictor)
    if native is None and library() is None:
        return  # nothing is computed natively
    expect(isinstance(native, NativeCodePredictor), "A code predictor with weights in a scheme is not known.")
    embeddings = torch.randn(1, 2, _WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    code = torch.tensor([[1]])

    def logits() -> torch.Tensor:
        found = []
        with torch.no_grad():
            outputs = predictor(inputs_embeds=embeddings, use_cache=True)
            for step in (1, 2):
                found.append(outputs.logits[0, -1].float())
                kept = {name: one for name, one in outputs.items() if is_cache(one)}
                outputs = predictor(input_ids=code, generation_steps=step, use_cache=True, **kept)
        return torch.stack([*found, outputs.logits[0, -1].float()])

    got = logits()
    for module in predictor.modules():
        while at(module, "native") is not None:
            remove(module, "native")
    want = logits()
    far = float((got - want).norm() / want.norm())
    expect(far < 0.05, f"A code predictor's logits differ from those computed natively by {far:.0%}.")


def _rounded_code_predictor() -> Any:
    """A tiny code predictor with random weights in int8."""
    from transformers import Qwen3OmniMoeConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
        Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration as Predictor,
    )

    sizes = {
        "hidden_size": _WIDTH, "intermediate_size": _WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "num_hidden_layers": 2, "num_code_groups": 4, "vocab_size": 32,
    }  # fmt: skip
    config = Qwen3OmniMoeConfig(talker_config={"code_predictor_config": sizes})
    with _same_random_numbers():
        torch.manual_seed(0)
        predictor: Any = Predictor._from_config(config.talker_config.code_predictor_config, dtype=torch.bfloat16).eval()
        for parameter in predictor.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=_WIDTH**-0.5)
    predictor.requires_grad_(False)
    for path, module in list(predictor.named_modules()):
        if type(module) is nn.Linear:
            matrix = StoredMatrix(
                parameter=path, shape=tuple(module.weight.shape), scheme=SCHEMES["int8"], transposed=False
            )
            layer = QuantisedLinear(module, matrix)
            layer.fill(*matrix.quantise(module.weight))
            predictor.set_submodule(path, layer)
    install_native_norms(predictor)
    install_native_layers(predictor)
    return predictor


CONTRACTS: tuple[Contract, ...] = (
    *(place(*row) for row in _PLACES),
    Contract(name="the plug-in sees the skeleton before weights", protects=READING,
             follower="coterie.integration.quantizer", check=_the_plug_in_sees_the_skeleton),
    Contract(name="decode steps show their cache", protects=MEMORY, follower="coterie.passes.forward_call",
             check=_steps_show_their_cache),
    Contract(name="use_cache=False keeps nothing", protects=EXACT, follower="coterie.passes.forward_call",
             check=_without_a_cache_nothing_is_kept),
    Contract(name="a code predictor is what is computed natively", protects=EXACT,
             follower="coterie.integration.code_predictor", check=_a_code_predictor_is_what_is_computed_natively),
    Contract(name="too long a text is refused", protects=MEMORY, follower="coterie.passes.admission",
             check=_too_long_a_text_is_refused),
)  # fmt: skip
"""All of them, in the order in which they are shown."""

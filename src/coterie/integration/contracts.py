"""What the plug-in and the watch over forward passes rely on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from coterie.errors import ContextLengthError
from coterie.hf.contract import Broken, Contract, expect
from coterie.hf.contracts import EXACT, MEMORY, READING, place, tiny_config
from coterie.passes.clock import StepClock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROMPT, _NEW = 5, 4
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


CONTRACTS: tuple[Contract, ...] = (
    *(place(*row) for row in _PLACES),
    Contract(name="the plug-in sees the skeleton before weights", protects=READING,
             follower="coterie.integration.quantizer", check=_the_plug_in_sees_the_skeleton),
    Contract(name="decode steps show their cache", protects=MEMORY, follower="coterie.passes.forward_call",
             check=_steps_show_their_cache),
    Contract(name="use_cache=False keeps nothing", protects=EXACT, follower="coterie.passes.forward_call",
             check=_without_a_cache_nothing_is_kept),
    Contract(name="too long a text is refused", protects=MEMORY, follower="coterie.passes.admission",
             check=_too_long_a_text_is_refused),
)  # fmt: skip
"""All of them, in the order in which they are shown."""

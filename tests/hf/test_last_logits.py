"""Generation computes the logits of the last position, not those of all, of every class, with stock's bits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from coterie.errors import ContextLengthError
from coterie.hf.last_logits import can_be_given, output_head, takes_parameter
from coterie.kernels import QuantisedLinear, StockLinear
from coterie.quant import StoredMatrix, lossy_scheme
from coterie.spec import LAST_POSITIONS
from coterie.spec.encodings import USUAL_SCHEMES
from zoo import MATRIX, ZOO

BF16, FP32 = torch.bfloat16, torch.float32
VARIANTS = {**MATRIX, **ZOO}
GIVEN = sorted(name for name, one in VARIANTS.items() if not one.why_not and can_be_given(one.model_class))
SPEAKS = [*GIVEN, "qwen3_omni"]
WRAPPED = "NemotronH_Omni_Reasoning_V3"
"""Its head is that of a language model inside it. All logits are computed, and the budget counts them."""
PROMPT = 150
STEPS = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def speaker(model: Any) -> Any:
    return getattr(model, "thinker", model)


def prompt(name: str, batch: int = 1, length: int = PROMPT) -> dict[str, torch.Tensor]:
    """Inputs; an encoder's decoder begins with as many."""
    inputs = VARIANTS[name].inputs(seed=3, batch=batch, length=length)
    if "decoder_input_ids" in inputs:
        inputs["decoder_input_ids"] = torch.arange(batch * length).reshape(batch, length) * 7 % 57 + 3
    return inputs


@contextmanager
def products(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Positions that the head multiplies, and logits that the class gets of it."""
    seen: list[tuple[int, int]] = []
    head = output_head(model)
    assert head is not None
    handle = head.register_forward_hook(lambda _, args, out: seen.append((args[0].shape[1], out.shape[1])))
    yield seen
    handle.remove()


@pytest.fixture
def pair(zoo_checkpoint, zoo_stock, open_model) -> Callable[..., tuple[Any, Any]]:
    """A streamed model and stock's, the parts that generate."""

    def make(name: str, dtype: torch.dtype = BF16, **options: Any) -> tuple[Any, Any]:
        model: PreTrainedModel = open_model(zoo_checkpoint(name, dtype), **options)
        return speaker(model), speaker(zoo_stock(name, dtype))

    return make


def assert_same_generation(got: Any, want: Any) -> None:
    assert torch.equal(got.sequences, want.sequences)
    assert len(got.logits) == len(want.logits)
    for ours, theirs in zip(got.logits, want.logits, strict=True):
        assert torch.equal(ours, theirs), f"{(ours != theirs).float().mean():.1%} of the logits differ"


def test_every_class_that_generates_can_be_asked() -> None:
    """By itself, or because it is given the parameter; what transformers' own generate does not run is left alone."""
    left = {
        one.model_class.__name__
        for one in VARIANTS.values()
        if not one.why_not and not takes_parameter(one.model_class) and not can_be_given(one.model_class)
    }
    assert left <= {
        "DiffusionGemmaForBlockDiffusion",
        WRAPPED,
        "OpenAIPrivacyFilterForTokenClassification",
        "Qwen3OmniMoeForConditionalGeneration",
    }
    for one in VARIANTS.values():
        if not one.why_not and one.model_class.__name__ in left - {WRAPPED}:
            assert getattr(one.model_class, "generate", None) is not GenerationMixin.generate
    assert "qwen3_omni_thinker" in GIVEN


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("name", SPEAKS)
def test_generation_has_stocks_bits(name, dtype, batch, pair) -> None:
    streamed, stock = pair(name, dtype)
    with products(streamed) as seen:
        got = streamed.generate(**prompt(name, batch), **STEPS)
    assert_same_generation(got, stock.generate(**prompt(name, batch), **STEPS))
    assert seen == [(LAST_POSITIONS, 1), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize(
    "way",
    [
        {"prompt_lookup_num_tokens": 3, "eos_token_id": 10_000},  # transformers 5.7 looks up only with one
        {"num_beams": 3},
        {"num_return_sequences": 2, "num_beams": 2},
    ],
    ids=["candidates", "beams", "several"],
)
def test_other_ways_of_generating_have_stocks_tokens(way, pair) -> None:
    streamed, stock = pair("qwen3_omni_thinker")
    options = {"max_new_tokens": 8, "do_sample": False, **way}
    inputs = prompt("qwen3_omni_thinker")
    inputs["input_ids"] = inputs["input_ids"][:, :10].repeat(1, PROMPT // 10)  # there is something to look up
    with products(streamed) as seen:
        got = streamed.generate(**inputs, **options)
    assert torch.equal(got, stock.generate(**inputs, **options))
    assert seen[0][0] == LAST_POSITIONS
    if "prompt_lookup_num_tokens" in way:
        assert max(logits for _, logits in seen) > 1  # a candidate is checked by the logits of each of its tokens
    else:
        assert {logits for _, logits in seen} == {1}


def test_a_prompt_in_pieces_has_the_logits_of_each_pieces_end(pair) -> None:
    streamed, stock = pair("qwen3_omni_thinker")
    options = {**STEPS, "prefill_chunk_size": 100}
    with products(streamed) as seen:
        got = streamed.generate(**prompt("qwen3_omni_thinker"), **options)
    assert_same_generation(got, stock.generate(**prompt("qwen3_omni_thinker"), **options))
    assert {logits for _, logits in seen} == {1}


@pytest.mark.parametrize("name", SPEAKS)
def test_a_call_has_all_logits_unless_it_asks_for_fewer(name, pair) -> None:
    streamed, stock = pair(name)
    inputs = prompt(name, batch=2)
    with torch.no_grad():
        want = stock(**inputs).logits
        assert torch.equal(streamed(**inputs).logits, want)
        assert torch.equal(streamed(**inputs, logits_to_keep=0).logits, want)
        for count in (1, 5, LAST_POSITIONS, LAST_POSITIONS + 1, 2 * PROMPT):
            assert torch.equal(streamed(**inputs, logits_to_keep=count).logits, want[:, -count:])
        places = torch.tensor([0, 7, PROMPT - 1])
        assert torch.equal(streamed(**inputs, logits_to_keep=places).logits, want[:, places])
        assert torch.equal(streamed(**inputs).logits, want)


def test_threads_ask_for_themselves(pair) -> None:
    streamed, stock = pair("qwen3_omni_thinker")
    inputs = prompt("qwen3_omni_thinker")
    with torch.no_grad():
        want = stock(**inputs).logits
    wrong: list[object] = []

    def call(count: int) -> None:
        for _ in range(5):
            with torch.no_grad():
                got = streamed(**inputs, logits_to_keep=count).logits
            if not torch.equal(got, want[:, -count:] if count else want):
                wrong.append((count, got.shape))

    threads = [threading.Thread(target=call, args=(count,)) for count in (0, 1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_error_leaves_nothing_asked_for(pair) -> None:
    streamed, stock = pair("qwen3_omni_thinker")
    inputs = prompt("qwen3_omni_thinker")
    with pytest.raises((IndexError, RuntimeError)):
        streamed(input_ids=torch.full((1, 100), 10**6), logits_to_keep=1)
    with torch.no_grad():
        assert torch.equal(streamed(**inputs).logits, stock(**inputs).logits)


LENGTHS = (LAST_POSITIONS + 1, 97, 128, 513, 1025)


@pytest.mark.parametrize("shape", [(64, 256), (256, 8192), (2048, 1500)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bf16", "fp32"])
def test_the_last_of_few_rows_rounds_as_the_last_of_all(dtype, shape) -> None:
    inputs, outputs = shape
    head = nn.Linear(inputs, outputs, bias=False, dtype=dtype).requires_grad_(False)
    head.__class__ = StockLinear
    assert_rows_round_alike(head, inputs, dtype)


@pytest.mark.parametrize("scheme", USUAL_SCHEMES)
def test_so_it_does_of_a_quantised_head(scheme) -> None:
    plain = nn.Linear(256, 4096, bias=False, dtype=BF16).requires_grad_(False)
    found = lossy_scheme(scheme)
    assert found is not None
    matrix = StoredMatrix(parameter="weight", shape=(4096, 256), scheme=found, transposed=False)
    head = QuantisedLinear(plain, matrix)
    head.fill(*found.quantise(plain.weight))
    assert_rows_round_alike(head, 256, BF16)


@torch.inference_mode()
def assert_rows_round_alike(head: nn.Module, inputs: int, dtype: torch.dtype) -> None:
    hidden = torch.randn(1, max(LENGTHS), inputs).to(dtype)
    for length in LENGTHS:
        few = head(hidden[:, length - LAST_POSITIONS : length].contiguous())
        assert torch.equal(few[:, -1], head(hidden[:, :length].contiguous())[:, -1])


@pytest.fixture
def wide(zoo_checkpoint, open_model) -> Callable[..., Any]:
    """A model whose logits are far larger than its budget's activations."""

    def make(**options: Any) -> Any:
        model = open_model(zoo_checkpoint("qwen3_omni_thinker", BF16), memory="8GiB", **options)
        clock = model.coterie._attachment.clocks["thinker"]
        clock.provide(clock.max_context, widened(model))
        return model

    return make


def widened(model: Any, beside: int = 0) -> Any:
    from dataclasses import replace

    from coterie.engine.memory import logits_room

    room = logits_room(model.coterie.source, beside=beside)
    return replace(room, shape=replace(room.shape, vocabulary=1 << 20))


def test_logits_that_no_budget_has_room_for_are_refused(wide) -> None:
    model = wide(max_context=200)
    inputs = prompt("qwen3_omni_thinker")
    with torch.no_grad():
        with pytest.raises(ContextLengthError, match=r"The logits of 150 positions take 300\.00 MiB") as refused:
            model(**inputs)
        assert "logits_to_keep=1" in str(refused.value)
        assert refused.value.facts["max_context"] == 200
        assert model(**inputs, logits_to_keep=1).logits.shape[1] == 1
        assert model(**prompt("qwen3_omni_thinker", length=LAST_POSITIONS)).logits.shape[1] == LAST_POSITIONS
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] == PROMPT + 3


def test_logits_have_room_where_it_was_kept_for_them(wide) -> None:
    model = wide(max_context=200)
    clock = model.coterie._attachment.clocks["thinker"]
    clock.provide(200, widened(model, beside=PROMPT << 21))
    with torch.no_grad():
        assert model(**prompt("qwen3_omni_thinker")).logits.shape[1] == PROMPT


def test_without_a_budget_logits_are_not_bounded(zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("qwen3_omni_thinker", BF16), expert_memory="100%", max_context=200)
    assert model.coterie._attachment.clocks["thinker"]._admission.logits is None
    with torch.no_grad():
        assert model(**prompt("qwen3_omni_thinker")).logits.shape[1] == PROMPT

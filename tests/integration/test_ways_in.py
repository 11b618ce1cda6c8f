"""Every way into a model keeps its ceiling: what takes more than was planned for is refused, and the model goes on."""

from __future__ import annotations

import functools
import gc
import threading
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, pipeline
from transformers.cache_utils import DynamicCache, StaticCache

from coterie.errors import ContextLengthError, CoterieError, UnsupportedError
from harness.kept_cache import kept_cache
from zoo import ZOO

BF16 = torch.bfloat16
NAME = "qwen3_moe"
MOST = 48
PROMPT = 32
LOOKUP = {"prompt_lookup_num_tokens": 2, "eos_token_id": 10_000}
"""Early releases cannot do it without a token that ends the text, which here none does."""
OPTIONS: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def ids(length: int = PROMPT, batch: int = 1) -> torch.Tensor:
    return torch.randint(3, 90, (batch, length), generator=torch.Generator().manual_seed(length))


def generate(model: PreTrainedModel, *, new: int = 40, batch: int = 1, **options: Any) -> Any:
    inputs = ids(batch=batch)
    return model.generate(
        inputs, attention_mask=torch.ones_like(inputs), **{**OPTIONS, "max_new_tokens": new, **options}
    )


def step_by_step(model: PreTrainedModel, cache: Any, steps: int = 40) -> None:
    now, kept = ids(), {"past_key_values": cache}
    for _ in range(steps):
        out = model(now, use_cache=True, **kept)
        now, kept = out.logits[:, -1:].argmax(-1), kept_cache(out)


def beside_a_kept_cache(model: PreTrainedModel) -> None:
    kept = [model(ids()), model(ids())]
    assert len(kept) == 2


def beside_a_kept_generation(model: PreTrainedModel) -> None:
    kept = [generate(model, new=4, return_dict_in_generate=True) for _ in range(2)]
    assert len(kept) == 2


def by_a_loop_of_ones_own(model: PreTrainedModel, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    cache = DynamicCache(config=model.config)
    for _ in range(40):
        out = model(input_ids[:, -1:] if cache.get_seq_length() else input_ids, past_key_values=cache)
        input_ids = torch.cat([input_ids, out.logits[:, -1:].argmax(-1)], dim=-1)
    return input_ids


def assisted(model: PreTrainedModel) -> None:
    generate(model, assistant_model=assistant())


@functools.cache
def assistant() -> PreTrainedModel:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=ZOO[
            NAME
        ].config().vocab_size, intermediate_size=32, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config).eval()


def as_a_pipeline(model: PreTrainedModel) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(90)}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w1", pad_token="w0")
    made = pipeline("text-generation", model=model, tokenizer=words)
    made(" ".join(["w5"] * PROMPT), max_new_tokens=40, do_sample=False, eos_token_id=None)


def compiled(model: PreTrainedModel) -> None:
    torch.compile(model, backend="eager")(ids(MOST + 1))


def many_rows(model: PreTrainedModel) -> None:
    model(ids(20, batch=3), use_cache=False)


TOO_LONG = r"tokens are more than the 48|reserves \d+ × \d+ tokens|do not fit beside"
WAYS: dict[str, tuple[Callable[[PreTrainedModel], Any], type[CoterieError], str]] = {
    "forward": (lambda model: model(ids(MOST + 1)), ContextLengthError, TOO_LONG),
    "forward without a cache": (lambda model: model(ids(MOST + 1), use_cache=False), ContextLengthError, TOO_LONG),
    "forward of a batch": (many_rows, ContextLengthError, "3 × 20 tokens"),
    "forward of embeddings": (
        lambda model: model(inputs_embeds=model.get_input_embeddings()(ids(MOST + 1))), ContextLengthError, TOO_LONG,
    ),
    "greedy": (generate, ContextLengthError, "1 × 49 tokens"),
    "greedy, a batch": (lambda model: generate(model, batch=2, new=2), ContextLengthError, "2 × 32 tokens"),
    "sampling": (lambda model: generate(model, do_sample=True), ContextLengthError, TOO_LONG),
    "several samples": (
        lambda model: generate(model, do_sample=True, num_return_sequences=4, new=4), ContextLengthError, "4 × 32",
    ),
    "beams": (lambda model: generate(model, num_beams=4, new=4), ContextLengthError, "4 × 32"),
    "sampling with beams": (
        lambda model: generate(model, num_beams=2, do_sample=True, new=4), ContextLengthError, "2 × 32",
    ),
    "prompt lookup": (lambda model: generate(model, **LOOKUP), ContextLengthError, TOO_LONG),
    "assisted decoding": (assisted, ContextLengthError, TOO_LONG),
    "no cache": (lambda model: generate(model, use_cache=False), ContextLengthError, TOO_LONG),
    "offloaded cache": (
        lambda model: generate(model, cache_implementation="offloaded"), UnsupportedError, "default cache",
    ),
    "offloaded static cache": (
        lambda model: generate(model, cache_implementation="offloaded_static"), UnsupportedError, "default cache",
    ),
    "static cache": (
        lambda model: generate(model, cache_implementation="static"), ContextLengthError, r"reserves 1 × 7\d tokens",
    ),
    "static cache, of beams": (
        lambda model: generate(model, cache_implementation="static", num_beams=2, new=2), ContextLengthError, TOO_LONG,
    ),
    "paged cache": (lambda model: generate(model, cache_implementation="paged"), UnsupportedError, "generate_batch"),
    "own cache": (lambda model: step_by_step(model, DynamicCache(config=model.config)), ContextLengthError, TOO_LONG),
    "own static cache": (
        lambda model: step_by_step(model, StaticCache(config=model.config, max_cache_len=4000), steps=2),
        ContextLengthError, "reserves 1 × 4000 tokens",
    ),
    "own cache, handed to generate": (
        lambda model: generate(model, past_key_values=DynamicCache(config=model.config)), ContextLengthError, TOO_LONG,
    ),
    "own decoding loop": (
        lambda model: generate(model, custom_generate=by_a_loop_of_ones_own), ContextLengthError, TOO_LONG,
    ),
    "a second cache": (beside_a_kept_cache, ContextLengthError, "32 tokens do not fit beside the 32"),
    "a second generation that is kept": (beside_a_kept_generation, ContextLengthError, "do not fit beside the 35"),
    "pipeline": (as_a_pipeline, ContextLengthError, TOO_LONG),
    "torch.compile": (compiled, ContextLengthError, TOO_LONG),
    "continuous batching": (lambda model: model.generate_batch([[1, 2]]), UnsupportedError, "padded batch"),
    "continuous batching, by its manager": (
        lambda model: model.init_continuous_batching(), UnsupportedError, "padded batch",
    ),
    "continuous batching, by its context": (
        lambda model: model.continuous_batching_context_manager(), UnsupportedError, "padded batch",
    ),
}  # fmt: skip


OF_THE_CALLER = {name for name in WAYS if name.startswith(("own cache", "own static cache", "a second"))}
"""What these fill is the caller's, who may go on with it: it is there until the caller lets go."""


@pytest.fixture(scope="module")
def limited(zoo_store, request):
    from coterie.engine import load

    model = load(zoo_store(NAME, BF16), expert_memory="50%", max_context=MOST)
    yield model
    model.coterie.close()


@pytest.mark.parametrize("way", WAYS)
def test_more_than_was_planned_for_is_refused(way, limited, zoo_stock):
    run, kind, words = WAYS[way]
    with pytest.raises(kind, match=words) as caught:
        run(limited)
    assert caught.value.advice
    # The exception is remembered, as a notebook does, and there is room all the same.
    if way not in OF_THE_CALLER:
        assert torch.equal(generate(limited, new=8), generate(zoo_stock(NAME, BF16), new=8))
    del caught
    gc.collect()
    assert generate(limited, new=8).shape == (1, PROMPT + 8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static"},
        {"use_cache": False},
        LOOKUP,
    ],
    ids=str,
)
def test_what_fits_runs_to_the_last_token(options, limited):
    for _ in range(2):
        assert generate(limited, new=MOST - PROMPT, **options).shape == (1, MOST)


# --- several threads --------------------------------------------------------------------------------------------------


def in_threads(count: int, work: Callable[[int], Any]) -> tuple[list[Any], list[BaseException]]:
    """What came of it, in order, and what was raised."""
    made: list[Any] = [None] * count
    raised: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        torch.set_num_threads(1)
        barrier.wait(timeout=120)
        try:
            made[number] = work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(250)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    return made, raised


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2, "new": 4}], ids=str)
def test_prompts_of_several_threads_wait_for_each_other(options, zoo_store, open_model, zoo_stock):
    model = open_model(
        zoo_store(NAME, BF16), expert_memory="50%", max_context=2 * MOST if "num_beams" in options else MOST
    )
    watched = model.coterie._attachment.clocks["text"]._admission
    most = model.coterie._attachment.clocks["text"].max_context
    held, try_ = [], watched._try

    def tried(mine, limit):
        found = try_(mine, limit)
        with watched._lock:
            passes = [one for ref in watched._passes if (one := ref()) is not None]
            alive = [kept.size for kept in watched._kept.values() if kept.cache() is not None]
        held.append((sum(one.tokens for one in passes), sum(alive)))
        return found

    watched._try = tried
    given = {"new": 12, **options}
    made, raised = in_threads(6, lambda number: generate(model, **given))
    assert not raised, raised
    expected = generate(zoo_stock(NAME, BF16), **given)
    assert all(torch.equal(one, expected) for one in made)
    assert max(tokens for tokens, _ in held) <= most
    assert max(size for _, size in held) <= most


@pytest.mark.parametrize("grows", [0, 1])
def test_one_of_two_sequences_that_grow_beyond_it_together_is_told_so(
    grows, zoo_store, open_model, zoo_stock, monkeypatch
):
    """Both have read their prompts before either goes on: one grows until there is no room, and then the other does.

    Neither waits for room: two that go on would wait for each other.
    """
    most, other = 2 * PROMPT + 8, 1 - grows
    model = open_model(zoo_store(NAME, BF16), expert_memory="50%", max_context=most)
    admission = model.coterie._attachment.clocks["text"]._admission
    prompt_read, over, try_ = (threading.Event(), threading.Event()), threading.Event(), admission._try
    numbers: dict[int, int] = {}

    def tried(mine, limit):
        number = numbers[mine.thread]
        if mine.call.cached:
            prompt_read[number].set()
            assert (prompt_read[other] if number == grows else over).wait(timeout=120)
        return try_(mine, limit)

    def work(number):
        numbers[threading.get_ident()] = number
        try:
            return generate(model, new=30)
        finally:
            if number == grows:
                over.set()

    def wait(seconds):
        raise AssertionError("it waits for room")

    with monkeypatch.context() as patches:
        patches.setattr(admission, "_try", tried)
        patches.setattr("coterie.passes.admission.time", SimpleNamespace(monotonic=time.monotonic, sleep=wait))
        made, raised = in_threads(2, work)
    (error,) = raised
    assert isinstance(error, ContextLengthError)
    assert f"{PROMPT + 9} tokens do not fit beside the {PROMPT} of other sequences" in str(error)
    assert (error.tokens, error.max_context) == (most + 1, most)
    assert made[grows] is None
    assert torch.equal(made[other], generate(zoo_stock(NAME, BF16), new=30))
    assert generate(model, new=30).shape == (1, PROMPT + 30)


def test_a_pass_that_an_interrupt_has_lost_counts_no_longer(zoo_store, open_model):
    from coterie.passes.admission import Admission
    from coterie.passes.forward_call import CallReader

    admission = Admission()
    call = CallReader(lambda input_ids, use_cache=None: None).read((), {"input_ids": ids(), "use_cache": False})
    lost = weakref.ref(admission.enter(call, MOST))
    assert lost() is None
    admission.leave(admission.enter(call, MOST))


def test_a_failed_generation_leaves_the_callers_own_cache_alone(limited):
    cache = DynamicCache(config=limited.config)
    with pytest.raises(ContextLengthError):
        generate(limited, past_key_values=cache)
    assert cache.get_seq_length() == MOST

"""What a forward pass is is found from whatever cache it carries; one that hides its cache is an error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, Qwen3MoeForCausalLM, StaticCache
from transformers.cache_utils import DynamicLayer

from coterie.errors import ContextLengthError, ContractError
from coterie.hf.caches import is_cache
from coterie.passes.forward_call import CallReader

IDS = torch.arange(3, 19)[None]
ONE = IDS[:, :1]
NEW = 8


class Opaque:
    """Holds a cache where nobody finds it."""

    def __init__(self, cache: Any) -> None:
        self.hidden = cache


class Unlike:
    """A cache of no class of transformers, which counts its tokens as they do."""

    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length


@pytest.fixture
def release(monkeypatch) -> Callable[..., None]:
    """Makes a release of transformers whose forward takes its cache by another name, wrapped or kept elsewhere."""
    forward, prepare = Qwen3MoeForCausalLM.forward, Qwen3MoeForCausalLM.prepare_inputs_for_generation

    def make(name: str, wrap: Callable[[Any], Any], unwrap: Callable[[Any], Any]) -> None:
        own = next(one for one in ("cache", "past_key_values") if one in forward_names(forward))

        def other_forward(self, *args, **kwargs):
            given = kwargs.pop(name, None)
            return forward(self, *args, **kwargs, **({} if given is None else {own: unwrap(given)}))

        def other_prepare(self, *args, **kwargs):
            inputs = prepare(self, *args, **kwargs)
            inputs[name] = wrap(inputs.pop(own))
            return inputs

        monkeypatch.setattr(Qwen3MoeForCausalLM, "forward", other_forward)
        monkeypatch.setattr(Qwen3MoeForCausalLM, "prepare_inputs_for_generation", other_prepare)
        monkeypatch.setattr(Qwen3MoeForCausalLM, "_validate_model_kwargs", lambda self, kwargs: None)

    return make


def forward_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)


def same(value: Any) -> Any:
    return value


FOUND = {
    "another name": ("keys_and_values", same, same),
    "an old name": ("past_key_values_of_old", same, same),
    "in a list": ("state", lambda cache: [None, cache], lambda state: state[1]),
    "in a mapping": ("state", lambda cache: {"kv": (cache,)}, lambda state: state["kv"][0]),
}


@pytest.mark.parametrize("way", FOUND)
def test_another_name_changes_nothing(way, release, zoo_store, open_model):
    store = zoo_store("qwen3_moe", torch.bfloat16)
    expected = open_model(store).generate(IDS, max_new_tokens=NEW, do_sample=False)
    release(*FOUND[way])
    model = open_model(store, max_context=IDS.shape[1] + NEW)
    assert torch.equal(model.generate(IDS, max_new_tokens=NEW, do_sample=False), expected)
    stats = model.coterie.stats()
    assert (stats.prefill_tokens, stats.decode_tokens) == ({"text": IDS.shape[1]}, {"text": NEW - 1})
    with pytest.raises(ContextLengthError):
        model.generate(IDS, max_new_tokens=NEW + 10, do_sample=False)


def decoy(cache: Any) -> Any:
    """A fresh cache, beside the real one, which nobody sees."""
    fresh = DynamicCache()
    fresh.behind = cache
    return fresh


HIDDEN = {
    "as an unknown object": ("state", Opaque, lambda state: state.hidden),
    "under its old name, as an unknown object": ("past_key_values", Opaque, lambda state: state.hidden),
    "behind an empty one": ("state", decoy, lambda state: state.behind),
    "in a list of unknown objects": ("state", lambda cache: [Opaque(cache)], lambda state: state[0].hidden),
}


@pytest.mark.parametrize("way", HIDDEN)
def test_a_hidden_cache_is_an_error(way, release, zoo_store, open_model):
    release(*HIDDEN[way])
    model = open_model(zoo_store("qwen3_moe", torch.bfloat16), max_context=24)
    with pytest.raises(ContractError, match="transformers"):
        model.generate(IDS, max_new_tokens=NEW, do_sample=False)


def test_a_cache_that_is_not_given_at_all_is_an_error(monkeypatch, zoo_store, open_model):
    """The model keeps it for itself: it is neither in what it is called with nor in what it returns."""
    forward, prepare = Qwen3MoeForCausalLM.forward, Qwen3MoeForCausalLM.prepare_inputs_for_generation
    own = next(one for one in ("cache", "past_key_values") if one in forward_names(forward))
    kept = []

    def other_prepare(self, *args, **kwargs):
        inputs = prepare(self, *args, **kwargs)
        kept.append(inputs.pop(own))
        return inputs

    def other_forward(self, *args, **kwargs):
        return forward(self, *args, **kwargs, **{own: kept.pop()})

    monkeypatch.setattr(Qwen3MoeForCausalLM, "forward", other_forward)
    monkeypatch.setattr(Qwen3MoeForCausalLM, "prepare_inputs_for_generation", other_prepare)
    model = open_model(zoo_store("qwen3_moe", torch.bfloat16), max_context=24)
    with pytest.raises(ContractError, match=r"goes on after|counts 17 tokens after 0"):
        model.generate(IDS, max_new_tokens=NEW, do_sample=False)


def test_a_cache_that_is_neither_given_nor_returned_is_an_error(monkeypatch, zoo_store, open_model):
    forward = Qwen3MoeForCausalLM.forward

    def other_forward(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        return type(output)(logits=output.logits)

    monkeypatch.setattr(Qwen3MoeForCausalLM, "forward", other_forward)
    model = open_model(zoo_store("qwen3_moe", torch.bfloat16))
    with pytest.raises(ContractError, match="returns no known cache"), torch.no_grad():
        model(IDS, use_cache=True)


@pytest.mark.parametrize(("count", "kinds"), [(0, (DynamicCache, DynamicLayer)), (1000, (DynamicCache,))])
def test_a_cache_that_miscounts_is_an_error(count, kinds, monkeypatch, zoo_store, open_model):
    model = open_model(zoo_store("qwen3_moe", torch.bfloat16))
    for kind in kinds:
        monkeypatch.setattr(kind, "get_seq_length", lambda self, layer_idx=0: count)
    with pytest.raises(ContractError, match="counts"), torch.no_grad():
        model(IDS, use_cache=True)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"use_cache": False, "attention_mask": torch.ones(1, 16)}])
def test_without_a_cache_every_pass_begins(options, zoo_store, open_model):
    model = open_model(zoo_store("qwen3_moe", torch.bfloat16), max_context=24)
    model.generate(IDS, max_new_tokens=NEW, do_sample=False, **options)
    stats = model.coterie.stats()
    assert stats.decode_tokens == {"text": 0}
    assert stats.prefill_tokens == {"text": sum(range(16, 24))}


def reader() -> CallReader:
    def forward(input_ids=None, attention_mask=None, position_ids=None, anything=None, inputs_embeds=None, **kwargs):
        """Nothing."""

    return CallReader(forward)


def filled(cache: Any, tokens: int = 5) -> Any:
    cache.update(torch.zeros(1, 2, tokens, 4), torch.zeros(1, 2, tokens, 4), 0)
    return cache


def static() -> StaticCache:
    config = SimpleNamespace(get_text_config=lambda **_: config)
    config.__dict__.update(num_hidden_layers=1, layer_types=["full_attention"], sliding_window=None)
    try:
        return StaticCache(config=config, max_cache_len=32)
    except (AttributeError, TypeError):  # releases that want a whole configuration
        from transformers import Qwen3MoeConfig

        return StaticCache(config=Qwen3MoeConfig(num_hidden_layers=1), max_cache_len=32)


def with_an_empty_first_layer() -> DynamicCache:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4), 1)
    return cache


CACHES = {
    "whose first layer keeps something else": with_an_empty_first_layer,
    "dynamic": lambda: filled(DynamicCache()),
    "static": lambda: filled(static()),
    "encoder and decoder": lambda: EncoderDecoderCache(filled(DynamicCache()), filled(DynamicCache(), 9)),
    "of no class of transformers": lambda: Unlike(5),
}


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("place", ["keyword", "position", "unnamed"])
def test_every_kind_of_cache_is_found_everywhere(kind, place):
    cache = CACHES[kind]()
    assert is_cache(cache)
    if place == "position":
        call = reader().read((ONE, None, None, cache), {})
    else:
        call = reader().read((), {"input_ids": ONE, "anything" if place == "keyword" else "of_a_new_name": cache})
    assert (call.batch, call.tokens, call.cached, call.phase) == (1, 1, 5, "decode")


def test_an_empty_cache_begins():
    call = reader().read((IDS,), {"x": DynamicCache()})
    assert (call.cached, call.phase) == (0, "prefill")
    assert reader().read((ONE,), {"x": DynamicCache()}).phase == "prefill"


@pytest.mark.parametrize(
    "given",
    [
        {"attention_mask": torch.ones(1, 7)},
        {"attention_mask": {"full_attention": torch.ones(1, 1, 1, 7)}},
        {"position_ids": torch.tensor([[6]])},
        {"position_ids": torch.tensor([[[6]], [[6]], [[6]]])},
        {"cache_position": torch.tensor([6])},
    ],
)
def test_a_pass_that_goes_on_without_a_cache_is_an_error(given):
    with pytest.raises(ContractError, match="after 6 earlier ones"):
        reader().read((ONE,), given)
    assert reader().read((ONE,), given | {"use_cache": False}).phase == "prefill"


def test_a_pass_without_tokens_is_an_error():
    with pytest.raises(ContractError, match="shows no tokens, only 'tokens'"):
        reader().read((), {"tokens": IDS})


def test_embeddings_are_tokens():
    call = reader().read((), {"inputs_embeds": torch.zeros(2, 3, 4)})
    assert (call.batch, call.tokens, call.ids) == (2, 3, None)


def test_plain_arguments_are_no_caches():
    mask = torch.nn.attention.flex_attention.create_block_mask(
        lambda b, h, q, k: q >= k, None, None, 4, 4, device="cpu"
    )
    plain = {"attention_mask": mask, "flags": [True, 1.5, "x", None], "dtype": torch.float32, "sizes": {"a": (1, 2)}}
    assert reader().read((IDS,), plain).phase == "prefill"

"""Attention whose heads share keys and values has transformers' bits, without transformers' copies."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.integrations import sdpa_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from coterie.integration.grouped_attention import GroupedAttention, share_keys_and_values

HEADS, GROUPS, WIDTH = 8, 4, 16
STOCK = sdpa_attention.sdpa_attention_forward


class Attention(nn.Module):
    num_key_value_groups = GROUPS
    is_causal = True


class Copied(Exception):
    """transformers repeats keys or values."""


@pytest.fixture
def ours() -> tuple[GroupedAttention, Attention]:
    attention, module = GroupedAttention(STOCK), Attention()
    attention.serve(nn.Sequential(module))
    return attention, module


@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def repeat_kv(*_: Any) -> None:
        raise Copied

    monkeypatch.setattr(sdpa_attention, "repeat_kv", repeat_kv)


@pytest.fixture
def registered() -> Iterator[None]:
    """Whatever is registered under the name is as before, afterwards."""
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    yield
    ALL_ATTENTION_FUNCTIONS["sdpa"] = before


def states(tokens: int, before: int, dtype: torch.dtype, *, batch: int = 1) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(tokens)
    query = torch.randn(batch, tokens, HEADS, WIDTH, generator=made).to(dtype).transpose(1, 2)
    kept = torch.randn(2, batch, HEADS // GROUPS, before + tokens, WIDTH, generator=made).to(dtype)
    return [query, *kept]


def causal(tokens: int, before: int) -> torch.Tensor:
    return torch.ones(tokens, before + tokens, dtype=torch.bool).tril(before)[None, None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tokens", "before"), [(2, 1), (5, 30), (49, 552), (70, 0), (200, 400)])
def test_the_bits_are_those_of_transformers(ours: Any, dtype: torch.dtype, tokens: int, before: int) -> None:
    attention, module = ours
    for batch in (1, 3):
        given = states(tokens, before, dtype, batch=batch)
        shown = causal(tokens, before)
        added = torch.zeros(shown.shape, dtype=dtype).masked_fill(~shown, torch.finfo(dtype).min)
        for mask in (shown, added):
            expected, _ = STOCK(module, *given, mask, scaling=0.3)
            got, weights = attention(module, *given, mask, scaling=0.3, sliding_window=None, use_cache=True)
            assert (got.shape, got.is_contiguous(), weights) == ((batch, tokens, HEADS, WIDTH), True, None)
            assert torch.equal(got, expected)


@pytest.mark.usefixtures("no_copies")
def test_nothing_is_copied(ours: Any) -> None:
    attention, module = ours
    given = states(5, 30, torch.float32)
    attention(module, *given, causal(5, 30))
    with pytest.raises(Copied):
        attention(Attention(), *given, causal(5, 30))


@pytest.mark.usefixtures("no_copies")
@pytest.mark.parametrize(
    "changes", [{"dropout": 0.1}, {"position_bias": torch.zeros(1, HEADS, 5, 35)}, {"output_attentions": True}]
)
def test_what_else_transformers_does_it_goes_on_doing(ours: Any, changes: dict[str, Any]) -> None:
    attention, module = ours
    with pytest.raises(Copied):
        attention(module, *states(5, 30, torch.float32), causal(5, 30), **changes)


def test_without_a_mask_and_for_one_token(ours: Any) -> None:
    attention, module = ours
    for tokens, mask in ((5, None), (1, None), (1, causal(1, 30))):
        given = states(tokens, 0 if mask is None and tokens > 1 else 30, torch.float32)
        assert torch.equal(attention(module, *given, mask)[0], STOCK(module, *given, mask)[0])


def test_gradients_are_those_of_transformers(ours: Any) -> None:
    attention, module = ours
    gradients = []
    for compute in (attention, STOCK):
        query, key, value = states(5, 30, torch.float32)
        compute(module, query.requires_grad_(), key, value, causal(5, 30))[0].sum().backward()
        gradients.append(query.grad)
    assert torch.equal(*gradients)


@pytest.mark.usefixtures("registered", "no_copies")
def test_other_models_are_left_alone() -> None:
    ALL_ATTENTION_FUNCTIONS["sdpa"] = STOCK
    model, other = nn.Sequential(Attention()), Attention()
    share_keys_and_values(model)
    share_keys_and_values(nn.Sequential(Attention()))
    call = ALL_ATTENTION_FUNCTIONS["sdpa"]
    given = [*states(5, 30, torch.float32), causal(5, 30)]
    call(model[0], *given)
    with pytest.raises(Copied):
        call(other, *given)


@pytest.mark.usefixtures("registered")
def test_what_somebody_else_has_registered_stays() -> None:
    theirs = SimpleNamespace()
    ALL_ATTENTION_FUNCTIONS["sdpa"] = theirs
    share_keys_and_values(nn.Sequential(Attention()))
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs


@pytest.mark.usefixtures("no_copies")
def test_a_model_goes_on_without_copies(zoo_store: Any, open_model: Any) -> None:
    model = open_model(zoo_store("qwen3_moe"))
    assert model.config.num_attention_heads > model.config.num_key_value_heads
    with torch.inference_mode():
        begun = model(torch.arange(5)[None], use_cache=True)
        cache = begun.past_key_values
        model(torch.arange(3)[None], past_key_values=cache, use_cache=True)

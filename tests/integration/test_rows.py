"""Decode steps of several sequences: each has the bits that it has alone, whatever is resident and padded."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from coterie.integration.padding import padding_by
from coterie.integration.token_layer import TokenLayer
from coterie.native import MOST_ROWS, NativeLayer
from coterie.passes.forwards import own, remove
from coterie.spec import ExpertsContributed, ExpertsSelected, ExpertsServed
from harness.kept_cache import kept_cache
from integration.test_token_forwards import Told

pytestmark = pytest.mark.usefixtures("native")

LENGTHS = [5, 1, 12, 7, 3, 12, 9, 2, 4, 6, 8, 10, 11, 1, 2, 20]
STEPS = 3


@pytest.fixture
def finished(monkeypatch) -> list[int]:
    """Rows of every layer that was computed natively, in order."""
    calls: list[int] = []
    original = NativeLayer.release

    def release(self, state):
        calls.append(state.rows)
        original(self, state)

    monkeypatch.setattr(NativeLayer, "release", release)
    return calls


def layers_of(model: Any) -> int:
    return sum(isinstance(own(one), TokenLayer) for one in model.modules())


def prompts(rows: int) -> list[torch.Tensor]:
    return [torch.arange(length)[None] * (row + 3) % 90 + 3 for row, length in enumerate(LENGTHS[:rows])]


def tokens(rows: int, step: int, kinds: int) -> torch.Tensor:
    return torch.arange(rows)[:, None] % kinds + 7 * step + 4


def alone(model: Any, ids: list[torch.Tensor], kinds: int = 5) -> tuple[torch.Tensor, list[DynamicCache]]:
    """Logits of each sequence in some steps, [rows, steps, V], and the caches of before."""
    found, before = [], []
    with torch.no_grad():
        for row, prompt in enumerate(ids):
            before.append(DynamicCache())
            kept = kept_cache(model(prompt, use_cache=True))
            for i, layer in enumerate(next(iter(kept.values())).layers):
                before[-1].update(layer.keys.clone(), layer.values.clone(), i)
            outs = [
                model(tokens(len(ids), step, kinds)[row : row + 1], **kept, use_cache=True).logits
                for step in range(STEPS)
            ]
            found.append(torch.cat(outs, dim=1))
    return torch.cat(found), before


def joined(caches: list[DynamicCache]) -> tuple[DynamicCache, torch.Tensor]:
    """One cache of all, padded at the beginning with what must not be looked at, and the mask."""
    lengths = [cache.get_seq_length() for cache in caches]
    longest, whole = max(lengths), DynamicCache()
    for i in range(len(caches[0].layers)):
        parts = []
        for name in ("keys", "values"):
            rows = [getattr(cache.layers[i], name) for cache in caches]
            padding = [torch.full((*row.shape[:2], longest - row.shape[2], row.shape[3]), 50.0) for row in rows]
            parts.append(torch.cat([torch.cat([a.bfloat16(), b], dim=2) for a, b in zip(padding, rows, strict=True)]))
        whole.update(*parts, i)
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in lengths])
    return whole, mask


def together(model: Any, caches: list[DynamicCache], kinds: int = 5) -> torch.Tensor:
    """As :func:`alone`, all at once."""
    cache, mask = joined(caches)
    rows, found = len(caches), []
    # Releases differ in its name.
    name = next(one for one in ("cache", "past_key_values") if one in inspect.signature(model.forward).parameters)
    with torch.no_grad():
        for step in range(STEPS):
            mask = torch.cat([mask, torch.ones(rows, 1, dtype=mask.dtype)], dim=1)
            out = model(
                tokens(rows, step, kinds),
                attention_mask=mask,
                position_ids=mask.sum(dim=1, keepdim=True) - 1,
                use_cache=True,
                **{name: cache},
            )
            found.append(out.logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("rows", [2, 3, MOST_ROWS])
def test_rows_of_different_lengths_have_the_bits_that_they_have_alone(
    rows: int, scheme: str, store, open_model, finished
) -> None:
    model = open_model(store(scheme=scheme))
    want, caches = alone(model, prompts(rows))
    finished.clear()
    got = together(model, caches)
    assert finished == [rows] * (STEPS * layers_of(model)) != []
    assert torch.equal(got, want)
    assert len({tuple(row) for row in got[:, -1].tolist()}) == rows


def test_the_same_where_experts_must_be_read(store, open_model, finished) -> None:
    """Even if all rows choose the same expert, which a prompt's tokens would multiply as a matrix."""
    model = open_model(store())
    ids = [prompts(1)[0]] * MOST_ROWS
    want, caches = alone(model, ids, kinds=1)
    assert torch.equal(together(model, caches, kinds=1), want)
    small = open_model(store(), expert_memory="40%", prefetch="on")
    finished.clear()
    for _ in range(2):
        assert torch.equal(together(small, caches, kinds=1), want)
    assert finished == [MOST_ROWS] * (2 * STEPS * layers_of(small))
    total = small.coterie.stats().total
    assert total.misses > 0
    assert total.hits == total.requested - total.misses


def test_figures_are_those_of_what_was_chosen(store, open_model) -> None:
    model = open_model(store())
    _, caches = alone(model, prompts(4))
    told = Told()
    model.coterie.add_observer(told)
    before = model.coterie.stats().total.requested
    together(model, caches)
    chosen, served, added = (
        [event for event in told.events if isinstance(event, kind)]
        for kind in (ExpertsSelected, ExpertsServed, ExpertsContributed)
    )
    assert len(chosen) == len(served) == len(added) == STEPS * layers_of(model)
    for one, other, third in zip(chosen, served, added, strict=True):
        assert one.expert_ids.shape == third.contributions.shape
        assert len(one.expert_ids) == 4
        assert other.requested == len(set(one.expert_ids.flatten().tolist()))
        assert (third.contributions > 0).all()
    assert model.coterie.stats().total.requested - before == sum(one.requested for one in served)


def test_a_padded_batch_generates_what_the_class_does(store, open_model, finished) -> None:
    model = open_model(store())
    ids = torch.arange(3, 19)[None].repeat(3, 1)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[2, :15] = 0, 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    out = model.generate(ids, **options, output_logits=True, return_dict_in_generate=True)
    assert finished == [3] * (5 * layers_of(model))
    for module in model.modules():
        if isinstance(own(module), TokenLayer):
            remove(module, "native")
    theirs = model.generate(ids, **options, output_logits=True, return_dict_in_generate=True)
    for got, want in zip(out.logits[:2], theirs.logits[:2], strict=True):
        assert ((got - want).norm(dim=-1) / want.norm(dim=-1)).median() < 0.03


def test_beams_go_their_ways(store, open_model, finished) -> None:
    model = open_model(store())
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3}
    out = model.generate(torch.arange(3, 12)[None], **options)
    assert set(finished) == {3}
    assert torch.equal(out, model.generate(torch.arange(3, 12)[None], **options))


def test_what_hides_more_than_padding_goes_to_the_class(store, open_model, finished) -> None:
    model = open_model(store())
    ids = torch.arange(3, 19)[None].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[0, 5] = 0
    model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
    model.generate(ids, max_new_tokens=3, do_sample=False, cache_implementation="static")
    many = ids[:1].repeat(MOST_ROWS + 1, 1)
    model.generate(many, max_new_tokens=3, do_sample=False)
    assert not finished


def test_layers_of_other_kinds_are_the_class_s_for_several_sequences(store, open_model, finished) -> None:
    """The talker's layers have a block of their own."""
    model = open_model(store("qwen3_omni"))
    layer = next(one for one in model.talker.modules() if isinstance(own(one), TokenLayer))
    width, head = layer.self_attn.q_proj.in_features, layer.self_attn.head_dim
    angles = torch.rand(2, 1, head)
    cache = DynamicCache(config=model.talker.model.config)
    with torch.no_grad():
        layer(
            torch.randn(2, 1, width).bfloat16(),
            past_key_values=cache,
            position_embeddings=(angles.cos().bfloat16(), angles.sin().bfloat16()),
        )
    assert not finished


def test_padding_is_what_is_hidden_at_the_beginning() -> None:
    def found(*rows: list[int]) -> list[int] | None:
        return padding_by(torch.tensor(rows).bool()[:, None, None])

    assert found([0, 0, 1], [1, 1, 1], [0, 1, 1]) == [2, 0, 1]
    assert found([0, 0, 1], [1, 0, 1]) is None
    assert found([1, 1, 0]) is None
    assert found([0, 0, 0]) is None
    assert padding_by(torch.ones(2, 1, 3, 3).bool()) is None

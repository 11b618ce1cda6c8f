"""Stretches of caches: copied out, put together again, cut off."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

from coterie.hf.cache_states import Mark, cut, fill, known_layers, stretch, stretch_nbytes, whole_layers
from coterie.hf.caches import cached_length
from zoo import ZOO

NAMES = ["qwen3_moe", "gpt_oss"]


def empty(name: str) -> DynamicCache:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    return DynamicCache(config=ZOO[name].config())


def put(cache: DynamicCache, begin: int, end: int) -> None:
    """Keys and values of some tokens, each its own."""
    for layer in range(2):
        values = torch.arange(begin, end, dtype=torch.float32)[:, None].expand(1, 2, -1, 4) + 1000 * layer
        cache.update(values, -values, layer)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_taken_out_is_what_is_put_in(name: str) -> None:
    cache, parts = empty(name), []
    for begin, end in ((0, 5), (5, 12), (12, 16)):
        put(cache, begin, end)
        assert stretch_nbytes(cache, begin, end) == stretch(cache, begin, end).nbytes
        parts.append(stretch(cache, begin, end))
    other = empty(name)
    fill(other, parts)
    assert cached_length(other) == 16
    for ours, theirs in zip(other.layers, cache.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.get_mask_sizes(3) == theirs.get_mask_sizes(3)
    put(cache, 16, 18)
    put(other, 16, 18)
    assert all(torch.equal(ours.keys, theirs.keys) for ours, theirs in zip(other.layers, cache.layers, strict=True))
    # Copies: what becomes of the cache is not theirs.
    assert parts[0].layers[1][0].shape[-2] == 5


def test_a_pass_that_was_broken_off_is_cut_off() -> None:
    cache = empty("qwen3_moe")
    put(cache, 0, 9)
    more = torch.zeros(1, 2, 4, 4)
    cache.update(more, more, 0)  # and nothing in the second layer
    cut(cache, 9)
    assert [layer.get_seq_length() for layer in cache.layers] == [9, 9]
    cut(cache, 4)
    assert [layer.get_seq_length() for layer in cache.layers] == [4, 4]
    assert torch.equal(cache.layers[1].keys[0, 0, :, 0], torch.arange(1000.0, 1004.0))


def test_which_caches_are_known() -> None:
    whole, window = empty("qwen3_moe"), empty("gpt_oss")
    assert (whole_layers(whole), known_layers(whole)) == (True, True)
    assert (whole_layers(window), known_layers(window)) == (False, True)
    others = [StaticCache(config=ZOO["qwen3_moe"].config(), max_cache_len=8)]
    others += [DynamicCache(config=ZOO[name].config()) for name in ("qwen3_next", "jamba") if not ZOO[name].why_not]
    assert not any(known_layers(cache) for cache in others)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [1, 7, 8, 20])
@pytest.mark.parametrize("reached", [0, 1, 2])
def test_a_token_is_taken_off_again_wherever_its_pass_was_broken_off(name: str, length: int, reached: int) -> None:
    """Also where another one has left a window for it, of 8 tokens in the one family that has one."""
    cache, other = empty(name), empty(name)
    for one in (cache, other):
        put(one, 0, length)
    mark = Mark(cache)
    for layer in range(reached):
        cache.update(*torch.full((2, 1, 2, 1, 4), 77.0), layer)
    mark.put_back()
    for ours, theirs in zip(cache.layers, other.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)
        assert ours.get_seq_length() == length

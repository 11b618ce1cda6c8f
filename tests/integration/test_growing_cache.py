"""Appending a token gives what transformers' own cache gives, and caches that share tensors stay apart."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

from coterie.integration.growing_cache import extend
from coterie.native import KeyValueRoom


def append(
    cache: DynamicCache, key: torch.Tensor, value: torch.Tensor, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As a layer that is computed natively does it."""
    rows, heads, _, width = key.shape
    rooms = extend(cache, layer, rows, heads, width)
    if rooms is None:
        return cache.update(key, value, layer)
    kept = cache.layers[layer]
    longer = kept.keys, kept.values
    assert rooms == KeyValueRoom.of(*longer)
    for whole, new in zip(longer, (key, value), strict=True):
        whole[:, :, -1:] = new
    return longer


def token(seed: int, heads: int = 2, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, 1, heads, 1, width, generator=generator).bfloat16()
    return key, value


def filled(tokens: int, layers: int = 2) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(layers):
        key, value = (torch.cat(each, dim=2) for each in zip(*(token(t) for t in range(tokens)), strict=True))
        cache.update(key, value, layer)
    return cache


def same(ours: DynamicCache, theirs: DynamicCache) -> None:
    assert len(ours.layers) == len(theirs.layers)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


@pytest.mark.parametrize("begun", [1, 5, 255, 256])
def test_every_token_is_there(begun: int) -> None:
    ours, theirs = filled(begun), filled(begun)
    for t in range(begun, begun + 260):
        for layer in range(2):
            keys, values = append(ours, *token(t), layer)
            wanted = theirs.update(*token(t), layer)
            assert torch.equal(keys, wanted[0])
            assert torch.equal(values, wanted[1])
            assert keys.stride()[2:] == (8, 1)
    same(ours, theirs)
    assert ours.get_seq_length() == begun + 260


def test_tokens_before_are_not_copied() -> None:
    cache = filled(3, layers=1)
    keys, _ = append(cache, *token(3), 0)
    later, _ = append(cache, *token(4), 0)
    assert later.data_ptr() == keys.data_ptr()


def test_a_cache_that_was_empty() -> None:
    ours, theirs = DynamicCache(), DynamicCache()
    for t in range(3):
        append(ours, *token(t), 0)
        theirs.update(*token(t), 0)
    same(ours, theirs)


def test_caches_that_share_tensors_do_not_see_each_others_tokens() -> None:
    one = filled(4, layers=1)
    append(one, *token(4), 0)
    other = copy.copy(one)
    other.layers = [copy.copy(layer) for layer in one.layers]
    append(one, *token(5), 0)
    append(other, *token(6), 0)
    expected = torch.cat([token(t)[0] for t in (0, 1, 2, 3, 4)], dim=2)
    assert torch.equal(one.layers[0].keys, torch.cat([expected, token(5)[0]], dim=2))
    assert torch.equal(other.layers[0].keys, torch.cat([expected, token(6)[0]], dim=2))


def test_a_copied_cache_is_another_one() -> None:
    one = filled(4, layers=1)
    append(one, *token(4), 0)
    other = copy.deepcopy(one)
    append(other, *token(6), 0)
    append(one, *token(5), 0)
    assert torch.equal(one.layers[0].keys[:, :, -1:], token(5)[0])
    assert torch.equal(other.layers[0].keys[:, :, -1:], token(6)[0])


def test_cropped_tokens_are_written_anew_beside_those_that_someone_may_hold() -> None:
    cache = filled(6, layers=1)
    append(cache, *token(6), 0)
    held = cache.layers[0].keys
    before = held.clone()
    cache.crop(-3)
    append(cache, *token(9), 0)
    assert torch.equal(held, before)
    assert torch.equal(cache.layers[0].keys, torch.cat([before[:, :, :4], token(9)[0]], dim=2))


def test_a_prompt_in_between() -> None:
    ours, theirs = filled(3, layers=1), filled(3, layers=1)
    append(ours, *token(3), 0)
    theirs.update(*token(3), 0)
    for cache in (ours, theirs):
        cache.update(torch.cat([token(4)[0]] * 5, dim=2), torch.cat([token(4)[1]] * 5, dim=2), 0)
    append(ours, *token(9), 0)
    theirs.update(*token(9), 0)
    same(ours, theirs)


def test_steps_in_and_out_of_inference_mode() -> None:
    with torch.inference_mode():
        cache = filled(3, layers=1)
        append(cache, *token(3), 0)
    with torch.no_grad():
        append(cache, *token(4), 0)
    with torch.inference_mode():
        append(cache, *token(5), 0)
    wanted = torch.cat([token(t)[0] for t in range(6)], dim=2)
    assert torch.equal(cache.layers[0].keys, wanted)


def test_caches_of_another_kind_do_it_their_way() -> None:
    class Other(DynamicCache):
        updates = 0

        def update(self, *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
            self.updates += 1
            return super().update(*args, **kwargs)  # type: ignore[arg-type]

    cache = Other()
    for t in range(3):
        append(cache, *token(t), 0)
    assert cache.updates == 3


def test_every_sequence_of_a_batch_grows() -> None:
    ours, theirs = DynamicCache(), DynamicCache()
    for t in range(270):
        key, value = (torch.cat(parts) for parts in zip(token(t), token(t + 1000), token(t + 2000), strict=True))
        append(ours, key, value, 0)
        theirs.update(key, value, 0)
    same(ours, theirs)
    ours.reorder_cache(torch.tensor([2, 0, 0]))
    theirs.reorder_cache(torch.tensor([2, 0, 0]))
    append(ours, key, value, 0)
    theirs.update(key, value, 0)
    same(ours, theirs)


def test_another_length_than_is_meant_is_left_alone() -> None:
    cache = filled(4, layers=1)
    assert extend(cache, 0, 1, 2, 8, length=4) is None
    assert extend(cache, 0, 2, 2, 8, length=5) is None
    assert cache.get_seq_length() == 4
    assert extend(cache, 0, 1, 2, 8, length=5) is not None
    assert cache.get_seq_length() == 5

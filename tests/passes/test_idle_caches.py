"""Caches that are kept for later, until somebody needs the room."""

from __future__ import annotations

import gc

import torch
from transformers import DynamicCache

from coterie.passes.idle_caches import IdleCaches


def filled(tokens: int = 3) -> DynamicCache:
    cache = DynamicCache()
    cache.update(torch.ones(1, 1, tokens, 2), torch.ones(1, 1, tokens, 2), 0)
    return cache


def test_the_one_that_was_used_longest_ago_goes_first() -> None:
    idle, (first, second, third) = IdleCaches(), (filled(), filled(), filled())
    for cache in (first, second, third, first):
        idle.keep(cache)
    assert idle.let_one_go(lambda cache: cache is not second) is third
    assert [len(cache.layers) for cache in (first, second, third)] == [1, 1, 0]
    assert idle.let_one_go(lambda cache: True) is second
    assert idle.let_one_go(lambda cache: True) is first
    assert idle.let_one_go(lambda cache: True) is None


def test_one_that_is_in_use_stays() -> None:
    idle, cache = IdleCaches(), filled()
    assert not idle.take(cache)
    idle.keep(cache)
    assert idle.take(cache)
    assert idle.let_one_go(lambda cache: True) is None
    assert cache.get_seq_length() == 3
    idle.keep(cache)
    idle.let_one_go(lambda cache: True)
    assert not idle.take(cache)


def test_one_that_nobody_has_is_forgotten() -> None:
    idle = IdleCaches()
    idle.keep(filled())
    gc.collect()
    assert idle.let_one_go(lambda cache: True) is None

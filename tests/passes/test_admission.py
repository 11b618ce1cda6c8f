"""Which caches a generation has used, and what they count for."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from coterie.errors import ContextLengthError
from coterie.hf.row_caches import RowCaches
from coterie.passes.admission import Admission, Admitted, CachesUsed, _Kept
from coterie.passes.forward_call import CallReader


def test_a_cache_in_the_place_of_one_that_is_gone_is_let_go_of() -> None:
    admission, cache = Admission(), DynamicCache()
    gone = DynamicCache()
    admission._kept[id(cache)] = _Kept(weakref.ref(gone), 3)
    del gone
    call: Any = None
    used = CachesUsed()
    with used:
        admission.leave(Admitted(call, size=5, tokens=5), [cache])
    assert admission._kept[id(cache)].size == 5
    used.let_go()
    assert not admission._kept


def test_caches_of_rows_count_for_what_each_holds() -> None:
    caches = [DynamicCache() for _ in range(3)]
    for cache, length in zip(caches, (2, 7, 4), strict=True):
        cache.update(torch.zeros(1, 1, length, 4), torch.zeros(1, 1, length, 4), 0)
    call = CallReader(lambda input_ids: None).read(
        (),
        {
            "input_ids": torch.ones(3, 1).long(),
            "use_cache": True,
            "cache": RowCaches(caches, (2, 7, 4), lambda _: None, depth=1),
        },
    )
    assert (call.phase, call.batch, call.cached) == ("decode", 3, 7)
    admission = Admission()
    place = admission.enter(call, 16)
    assert place.size == 16
    assert [admission._kept[id(cache)].size for cache in caches] == [3, 8, 5]
    admission.leave(place)
    with pytest.raises(ContextLengthError):
        admission.enter(call, 15)

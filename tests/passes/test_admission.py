"""Which caches a generation has used."""

from __future__ import annotations

import weakref
from typing import Any

from transformers import DynamicCache

from coterie.passes.admission import Admission, Admitted, CachesUsed, _Kept


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

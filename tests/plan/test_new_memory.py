"""How fast new memory becomes usable, by the clock and the pages that were touched."""

from __future__ import annotations

import itertools
import mmap
from typing import Any

import pytest

from coterie.plan import new_memory
from coterie.plan.new_memory import SAMPLE, new_memory_bandwidth

MIB = 2**20


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every trial takes two seconds; gives the sizes that were tried."""
    sizes: list[int] = []
    seconds = itertools.count(0, 2)

    class Mapping(mmap.mmap):
        def __new__(cls, fileno: int, length: int) -> Any:
            sizes.append(length)
            return super().__new__(cls, fileno, length)

    monkeypatch.setattr(new_memory.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(new_memory.mmap, "mmap", Mapping)
    return sizes


@pytest.mark.parametrize(("available", "tried"), [(None, SAMPLE), (8 * MIB, 2 * MIB), (1, 4096), (1 << 40, SAMPLE)])
def test_bytes_tried_per_second(available: int | None, tried: int, two_seconds: list[int]) -> None:
    assert new_memory_bandwidth(available) == tried / 2
    assert two_seconds == [tried]


def test_it_is_measured() -> None:
    assert 1e6 < new_memory_bandwidth(64 * MIB) < 1e14

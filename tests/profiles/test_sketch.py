from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.profiles import sketch as module
from coterie.profiles.sketch import TokenSketch, add_counts


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_PENDING", 16)


Stream = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), max_size=200)


@given(Stream, st.integers(1, 6), st.integers(1, 40))
def test_counts_are_never_too_high_and_too_low_by_no_more_than_is_said(stream, capacity, batch) -> None:
    sketch = TokenSketch(3, capacity)
    for start in range(0, len(stream), batch):
        part = np.array(stream[start : start + batch]).reshape(-1, 2)
        sketch.update(part[:, 0], part[:, 1])
    state = sketch.state(1)
    truth = Counter(stream)
    found = dict(
        zip(zip(state.experts.tolist(), state.tokens.tolist(), strict=True), state.counts.tolist(), strict=True)
    )
    for (expert, token), count in truth.items():
        assert count - state.dropped[expert] <= found.get((expert, token), 0) <= count
    for expert in range(3):
        own = sum(count for (e, _), count in truth.items() if e == expert)
        assert state.dropped[expert] <= own / (capacity + 1)
        assert sum(e == expert for e, _ in found) <= capacity
    assert set(found) <= set(truth)


@given(Stream)
def test_without_a_bound_counts_are_exact(stream) -> None:
    sketch = TokenSketch(3, None)
    pairs = np.array(stream).reshape(-1, 2)
    sketch.update(pairs[:, 0], pairs[:, 1])
    state = sketch.state(1)
    found = dict(
        zip(zip(state.experts.tolist(), state.tokens.tolist(), strict=True), state.counts.tolist(), strict=True)
    )
    assert found == Counter(stream)
    assert not state.dropped.any()


def test_a_sketch_goes_on_from_its_state() -> None:
    rng = np.random.default_rng(0)
    experts, tokens = rng.integers(0, 3, 400), rng.zipf(1.5, 400) % 50
    whole, first, second = (TokenSketch(3, 5) for _ in range(3))
    whole.update(experts[:200], tokens[:200])
    whole.state(1)
    whole.update(experts[200:], tokens[200:])
    first.update(experts[:200], tokens[:200])
    second.load(first.state(1))
    second.update(experts[200:], tokens[200:])
    for name in ("experts", "tokens", "counts", "dropped"):
        assert getattr(second.state(2), name).tolist() == getattr(whole.state(2), name).tolist()


def test_adding_counts_sums_by_code() -> None:
    codes, counts = add_counts(*(np.array(x) for x in ([2, 5], [1, 1], [9, 5, 2], [1, 2, 3])))
    assert (codes.tolist(), counts.tolist()) == ([2, 5, 9], [4, 3, 1])

"""The caches of compiled kernels are bounded by the budget, unless the environment says otherwise."""

import os

import pytest

from coterie.plan.compiled import bound_compiled_kernels, compiled_kernels_nbytes, leave_kernels_unbounded

GIB = 1 << 30
NAMES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        # Set first, so that it is put back afterwards whatever the test leaves behind.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("budget", [2 * GIB, 6 * GIB])
def test_takes_at_most_a_twentieth_of_the_budget(budget: int) -> None:
    planned = compiled_kernels_nbytes(budget)
    assert budget // 25 < planned <= budget // 20
    assert all(name not in os.environ for name in NAMES)
    bound_compiled_kernels(budget)
    assert compiled_kernels_nbytes(budget) == planned


def test_a_later_budget_counts_what_an_earlier_one_left() -> None:
    bound_compiled_kernels(8 * GIB)
    assert compiled_kernels_nbytes(GIB) == compiled_kernels_nbytes(8 * GIB)


def test_small_budgets_keep_room_for_a_decode_step() -> None:
    bound_compiled_kernels(GIB // 4)
    assert [os.environ[name] for name in NAMES] == ["8", "120"]


def test_large_budgets_keep_the_own_size_of_the_cache_that_threads_share() -> None:
    bound_compiled_kernels(100 * GIB)
    assert [os.environ[name] for name in NAMES] == ["8", "1024"]


def test_after_a_model_without_a_budget_the_defaults_are_counted() -> None:
    leave_kernels_unbounded()
    assert compiled_kernels_nbytes(GIB) == compiled_kernels_nbytes(100 * GIB)
    bound_compiled_kernels(GIB)
    assert [os.environ[name] for name in NAMES] == ["1024", "1024"]


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMES[0], "7")
    bound_compiled_kernels(2 * GIB)
    assert os.environ[NAMES[0]] == "7"
    before = compiled_kernels_nbytes(2 * GIB)
    monkeypatch.setenv(NAMES[0], "8")
    assert compiled_kernels_nbytes(2 * GIB) > before


def test_caches_that_are_larger_than_a_budget_would_make_them_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.plan.compiled import unbounded_note

    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)
    assert unbounded_note(1 << 30) == ""
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "1024")
    said = unbounded_note(1 << 30)
    assert "LRU_CACHE_CAPACITY=1024" in said
    assert "ONEDNN" not in said
    assert "fresh process" in said
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    assert unbounded_note(1 << 30) == ""

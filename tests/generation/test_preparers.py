"""Short works pass long ones, but not for ever; no more is done at once than may be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from coterie.generation import preparers as module
from coterie.generation.preparers import SHORT_NBYTES, Preparers

LONG = 10 * SHORT_NBYTES


class Works:
    """Works that say when they begin, and go on when they are told to."""

    def __init__(self, preparers: Preparers) -> None:
        self.preparers = preparers
        self.done: list[str] = []
        self.refused: list[str] = []
        self._begun: dict[str, threading.Event] = {}
        self._released: dict[str, threading.Event] = {}
        self._over: dict[str, threading.Event] = {}

    def add(
        self, name: str, nbytes: int, *, held: bool = False, decodes: bool = False, then: Callable = bool
    ) -> object:
        begun, released, over = (threading.Event() for _ in range(3))
        self._begun[name], self._released[name], self._over[name] = begun, released, over
        if not held:
            released.set()

        def run(wanted: bool) -> None:
            if not wanted:
                self.refused.append(name)
                return
            begun.set()
            assert released.wait(30)
            self.done.append(name)
            then()
            over.set()

        return self.preparers.submit(run, nbytes, decodes=decodes)

    def wait(self, *names: str) -> None:
        assert all(self._over[name].wait(30) for name in names)

    def wait_begun(self, *names: str) -> None:
        assert all(self._begun[name].wait(30) for name in names)

    def has_begun(self, name: str) -> bool:
        return self._begun[name].is_set()

    def release(self, *names: str) -> None:
        for name in names or self._released:
            self._released[name].set()


@pytest.fixture(params=[2, 4])
def works(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Works]:
    monkeypatch.setattr(module.os, "cpu_count", lambda: request.param)
    preparers = Preparers()
    assert preparers.threads == request.param
    made = Works(preparers)
    yield made
    made.release()
    preparers.close()


def test_a_short_one_is_done_whatever_is_going_on(works: Works) -> None:
    for number in range(6):
        works.add(f"long {number}", (100 if number == 0 else 1) * LONG, held=True)
    works.add("short", SHORT_NBYTES)
    works.wait("short")
    assert works.done == ["short"]


def test_what_is_done_beside_the_longest_is_bounded(works: Works) -> None:
    if works.preparers.threads < 4:
        pytest.skip("there is but one thread for long ones")
    works.add("longest", 1 << 30, held=True)
    works.wait_begun("longest")
    works.add("one", LONG, held=True)
    works.wait_begun("one")
    works.add("two", LONG, held=True)
    works.add("short", 10)
    works.wait("short")
    assert not works.has_begun("two")
    works.release("one")
    works.wait_begun("two")


def test_one_of_them_decodes_at_a_time(works: Works) -> None:
    works.add("one", 10, held=True, decodes=True)
    works.wait_begun("one")
    works.add("two", 10, decodes=True)
    works.add("text", 10)
    works.wait("text")
    assert not works.has_begun("two")
    works.release("one")
    works.wait("two")


def test_a_long_one_has_its_turn(works: Works) -> None:
    """Though there is always a shorter one, each of which hands in the next."""
    for number in range(works.preparers.threads - 1):
        works.add(f"held {number}", SHORT_NBYTES + 1, held=True)
    works.wait_begun(*(f"held {number}" for number in range(works.preparers.threads - 1)))
    works.add("long", LONG)
    made = 0

    def another() -> None:
        nonlocal made
        if made < 100 and "long" not in works.done:
            made += 1
            works.add(f"short {made}", SHORT_NBYTES + 1, then=another)

    another()
    # One place for what is not short: whoever ends in it sees the long one and the next shorter one.
    works.release("held 0", "long", *(f"short {number}" for number in range(1, made + 1)))
    works.wait("long")
    assert 3 < made < 20


def test_what_is_withdrawn_is_not_begun(works: Works) -> None:
    works.add("one", 10, held=True, decodes=True)
    works.wait_begun("one")
    two = works.add("two", 10, decodes=True)
    assert works.preparers.withdraw(two)
    assert not works.preparers.withdraw(two)
    assert len(works.preparers) == 0
    works.add("three", 10, decodes=True)
    works.release("one")
    works.wait("three")
    assert works.done == ["one", "three"]


def test_what_waits_at_the_end_is_told(works: Works) -> None:
    works.add("one", 10, held=True, decodes=True)
    works.wait_begun("one")
    works.add("two", 10, decodes=True)
    threading.Timer(0.05, works.release).start()
    works.preparers.close()
    works.add("late", 10)
    assert (works.done, works.refused) == (["one"], ["two", "late"])

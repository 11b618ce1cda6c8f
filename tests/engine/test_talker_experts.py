"""The talker's experts stay in memory for as long as anybody speaks, and until something else is computed."""

from __future__ import annotations

from typing import Any

import pytest

from coterie.engine.talker_experts import TalkerExperts
from coterie.spec import ExpertKey

OTHERS = [ExpertKey("thinker", 0, "mlp", expert) for expert in range(3)]
TALKERS = [ExpertKey("talker", 0, "mlp", expert) for expert in range(2)]


class Kept:
    """A cache that notes what it is to keep."""

    keeps_unread = False

    def __init__(self) -> None:
        self.calls: list[tuple[list[ExpertKey], int]] = []

    def keep(self, keys: Any, *, leaving: int) -> None:
        self.calls.append((list(keys), leaving))


@pytest.fixture
def cache() -> Kept:
    return Kept()


def test_they_are_kept_until_something_else_is_computed_and_nobody_speaks(cache: Any) -> None:
    experts = TalkerExperts(cache, [*OTHERS, *TALKERS], 100)
    assert experts.any
    with experts.stay():
        assert cache.calls == [(TALKERS, 100)]
        with experts.stay():
            experts.pass_begins("thinker")
        experts.pass_begins("thinker")
    experts.pass_begins("talker")
    with experts.stay():
        experts.pass_begins("thinker")
    assert len(cache.calls) == 1
    experts.pass_begins("thinker")
    experts.pass_begins("thinker")
    assert cache.calls[1:] == [([], 100)]


def test_they_are_read_again_when_encoders_have_given_their_memory_back(cache: Any) -> None:
    experts = TalkerExperts(cache, TALKERS, 100)
    with experts.stay():
        cache.keeps_unread = True
        experts.pass_begins("talker")
        assert len(cache.calls) == 1
        experts.pass_begins("thinker")
        assert cache.calls[1:] == [(TALKERS, 100)]


def test_a_model_that_does_not_speak_has_none(cache: Any) -> None:
    experts = TalkerExperts(cache, OTHERS, 5)
    assert not experts.any
    with experts.stay():
        experts.pass_begins("thinker")
    assert cache.calls == []


def test_where_nothing_can_be_kept_nobody_is_taken_to_speak(cache: Any) -> None:
    experts = TalkerExperts(cache, TALKERS, 100)
    cache.keep = lambda keys, leaving: 1 / 0
    with pytest.raises(ZeroDivisionError), experts.stay():
        pass
    # Nothing is kept, so nothing is let go of: that would fail again.
    experts.pass_begins("thinker")

"""Forwards of a module lie over each other in their stated order, and what others give a module is left to them."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from coterie.passes.forwards import Covering, Seen, at, covers_class, install, own, remove


class Doubling(nn.Module):
    def forward(self, calls: list[str]) -> list[str]:
        return [*calls, "class"]


class Over(Covering):
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, calls: list[str]) -> list[str]:
        found: list[str] = self.beneath([*calls, self.name])
        return found


def native(calls: list[str]) -> list[str]:
    return [*calls, "native"]


@pytest.fixture
def module() -> Any:
    return Doubling()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_the_order_is_the_stated_one_whichever_comes_first(module, order) -> None:
    parts = [("native", native), ("prediction", Over("prediction")), ("pass", Over("pass")), ("timing", Over("timing"))]
    for number in order:
        install(module, *parts[number])
    assert module([]) == ["timing", "pass", "prediction", "native"]
    for place, forward in parts:
        assert at(module, place) is forward


def test_of_one_place_the_later_covers_the_earlier(module) -> None:
    install(module, "pass", Over("first"))
    install(module, "pass", Over("second"))
    assert module([]) == ["second", "first", "class"]
    remove(module, "pass")
    assert module([]) == ["first", "class"]


def test_what_is_taken_off_leaves_the_rest_and_in_the_end_nothing(module) -> None:
    before = dict(module.__dict__)
    for place in ("prediction", "timing", "pass"):
        install(module, place, Over(place))
    remove(module, "pass")
    assert module([]) == ["timing", "prediction", "class"]
    remove(module, "native")  # there is none
    remove(module, "prediction")
    remove(module, "timing")
    assert module([]) == ["class"]
    assert own(module) is None
    assert module.__dict__ == before


def test_somebody_else_s_forward_lies_where_it_was_put(module) -> None:
    install(module, "prediction", Over("prediction"))
    ours = own(module)
    module.forward = lambda calls: ours([*calls, "other"])
    other = own(module)
    assert at(module, "prediction") is None
    assert not covers_class(module, "native")
    install(module, "native", native)  # which cannot come beneath what others call
    assert module([]) == ["native"]
    remove(module, "native")
    assert own(module) is other
    install(module, "timing", Over("timing"))
    assert module([]) == ["timing", "other", "prediction", "class"]
    remove(module, "timing")
    assert own(module) is other
    del module.forward
    assert at(module, "prediction") is None
    assert module([]) == ["class"]


def test_what_others_put_over_it_goes_with_it(module) -> None:
    install(module, "timing", Over("timing"))
    module.forward = lambda calls: calls
    remove(module, "timing")
    assert own(module) is None


def test_an_earlier_forward_that_is_put_back_is_known(module) -> None:
    install(module, "prediction", Over("prediction"))
    ours = own(module)
    install(module, "timing", Over("timing"))
    module.forward = ours
    assert at(module, "timing") is None
    install(module, "native", native)
    assert module([]) == ["prediction", "native"]


def test_whether_only_the_class_is_beneath(module) -> None:
    assert covers_class(module, "native")
    install(module, "prediction", Over("prediction"))
    assert covers_class(module, "native")
    assert not covers_class(module, "pass")
    install(module, "native", native)
    assert not covers_class(module, "native")


def test_changes_are_seen(module) -> None:
    other = Doubling()
    seen = Seen([module, other])
    assert seen.unchanged
    install(other, "native", native)
    assert not seen.unchanged
    remove(other, "native")
    assert seen.unchanged

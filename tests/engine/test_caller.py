"""Warnings are about the line that opens a model, whoever finds out what there is to say."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import coterie
from coterie.engine import open_streamed
from coterie.engine.caller import warn_caller
from coterie.spec.opening import Opening


@pytest.mark.parametrize("way", ["load", "opening"])
def test_the_line_that_opens_the_model_is_named(way: str, readable: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if way == "load":
            model = coterie.load(readable, expert_memory="1MiB", max_context=100_000)
        else:
            model = open_streamed(readable, Opening(expert_memory="1MiB", max_context=100_000))
        model.coterie.close()
    mine = [str(one.message) for one in caught if one.filename == __file__]
    assert any("max_context=100000 makes room for more" in message for message in mine)


def test_of_no_model() -> None:
    with pytest.warns(UserWarning, match="said") as caught:
        warn_caller("said")
    assert caught[0].filename == __file__

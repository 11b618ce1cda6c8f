"""Whatever a library raises over a stranger's file becomes one error that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.errors import InputError, LoadError, UsageError
from coterie.hf.foreign import foreign

PATH = Path("model") / "tokenizer.json"


class Panic(BaseException):
    """As Rust code raises."""


@pytest.mark.parametrize(
    "raised", [TypeError("x"), ZeroDivisionError(), Panic("regex"), RecursionError(), MemoryError()]
)
def test_everything_becomes_ours(raised):
    with (
        pytest.raises(LoadError, match=r"The tokenizer in .*tokenizer\.json cannot be used") as caught,
        foreign("The tokenizer", PATH),
    ):
        raise raised
    assert caught.value.__cause__ is raised
    assert caught.value.path == PATH


def test_the_class_may_be_chosen_and_long_texts_are_cut():
    with pytest.raises(InputError) as caught, foreign("The template", PATH, error=InputError, advice=None):
        raise ValueError("a\nb " * 1000)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), UsageError("ours")])
def test_interrupts_and_our_own_errors_pass(raised):
    with pytest.raises(type(raised)) as caught, foreign("The tokenizer", PATH):
        raise raised
    assert caught.value is raised

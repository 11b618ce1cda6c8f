"""The examples of docs/other-libraries.md, run as they stand, on a store of the bundled model."""

import re
from typing import Any

import pytest

from coterie.extraction import extract

from .pages import ROOT, python_blocks

BLOCKS = python_blocks((ROOT / "docs" / "other-libraries.md").read_text())
THEIRS = ("lm_eval", "langchain_huggingface")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the first block makes: the model and its tokenizer."""
    store = tmp_path_factory.mktemp("libraries") / "full"
    extract("bundled", store)
    names: dict[str, Any] = {}
    first = re.sub(r'MODEL = "[^"]*"', f"MODEL = {str(store)!r}", BLOCKS[0]).replace('"1GiB"', '"6GiB"')
    exec(first, names)
    yield names
    names["model"].coterie.close()


@pytest.mark.parametrize("block", BLOCKS[1:], ids=lambda block: re.sub(r"\W+", "-", block.splitlines()[0])[:40])
def test_an_example_runs(block: str, opened: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for package in THEIRS:
        if package in block:
            pytest.importorskip(package)
    exec(block, dict(opened))
    assert capsys.readouterr().out.strip()


def test_the_page_says_which_examples_the_tests_cannot_always_run() -> None:
    assert [package for package in THEIRS if any(package in block for block in BLOCKS)] == list(THEIRS)

"""The recordings on the page of speech: they are small, and the bundled model hears what the page says."""

import re

import pytest

from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling

from .pages import ROOT

FOLDER = ROOT / "docs" / "sounds"
ROW = re.compile(r"^\| \[[^\]]+\]\(sounds/([\w-]+\.wav)\) \| (.*) \|$", re.MULTILINE)


def rows() -> dict[str, str]:
    """Recording → what the page says of it."""
    return dict(ROW.findall((ROOT / "docs" / "speech.md").read_text()))


def test_each_is_on_the_page_and_all_are_small() -> None:
    assert sorted(rows()) == sorted(path.name for path in FOLDER.glob("*.wav"))
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 300_000


@pytest.mark.parametrize("name", sorted(rows()))
def test_it_says_what_the_page_says(name: str, open_model) -> None:
    processors = Processors(ROOT / "src" / "coterie" / "bundled")
    inputs = build_inputs(processors, "", audios=[FOLDER / name])
    ears = open_model("bundled", expert_memory="100%")
    heard = complete(ears, processors.tokenizer, inputs, Sampling(max_new_tokens=6, greedy=True)).text.strip()
    assert heard == name.partition("-")[0]
    assert re.search(f"“{heard}”|the same with", rows()[name])

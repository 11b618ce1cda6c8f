"""The rule of docs/speed.md: its bytes are those of real records, and pages show the present results."""

import json
from pathlib import Path

import coterie
import publish
import speed_rule
from coterie.extraction.quantising import record_layouts
from coterie.origins import CheckpointOrigin


def test_a_record_has_the_bytes_that_a_store_gives_it() -> None:
    config = Path(coterie.__file__).parent / "bundled" / "config.json"
    shape = json.loads(config.read_text())["text_config"]
    layouts = record_layouts(CheckpointOrigin.open("bundled"), "int4")
    expected = speed_rule.record_nbytes(shape["hidden_size"], shape["moe_intermediate_size"])
    assert {layout.nbytes for layout in layouts.values()} == {expected}


def test_every_page_shows_the_present_results() -> None:
    for page in publish.PAGES:
        text = page.read_text(encoding="utf-8")
        assert publish.filled(text) == text, page

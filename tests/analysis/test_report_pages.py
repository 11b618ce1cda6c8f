"""How a report is written: figures, its table of contents, and what experts read."""

import re

import numpy as np
import pytest

from coterie.analysis.report.favourites import favourites, most_specialised
from coterie.analysis.report.findings import Answer, Report, shown
from coterie.analysis.report.material import Material
from coterie.analysis.report.pages import html_page, markdown_page
from coterie.analysis.report.spread import _over_depth
from coterie.analysis.report.words import Words
from coterie.profiles import Profile, ProfileDatabase
from coterie.spec import BankKey
from profiles.conftest import favour, write_profile
from profiles.synthetic import Router


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(-0.0001, "bits", "0.000 bits"), (-0.0, "", "0.000"), (-0.0002, "%", "0.0 %"), (-0.001, "experts", "0 experts"),
     (-0.25, "bits", "-0.250 bits"), (-0.01, "%", "-1.0 %"), (0.0, "heads", "0 heads"), (None, "%", "–"),
     (10.0, "experts", "10 experts")],
)  # fmt: skip
def test_zero_has_no_sign(value, unit, text) -> None:
    assert shown(value, unit) == text


def test_it_grows_with_depth_only_if_layers_follow() -> None:
    zigzag = [0.252, 0.314, 0.268, 0.303, 0.263, 0.255, 0.312, 0.294]
    assert _over_depth(zigzag, 0.020).endswith("it goes up and down from layer to layer")
    assert "0.020 bits more" in _over_depth(zigzag, 0.020)
    assert "0.020 bits less" in _over_depth(zigzag[::-1], -0.020)
    rising = list(np.linspace(0.1, 0.3, 8))
    assert _over_depth(rising, 0.1).startswith("it grows with depth, by 0.100 bits")
    assert _over_depth(rising[::-1], -0.1).startswith("it falls with depth")


def report(*answers: Answer) -> Report:
    return Report(
        model="m", model_class="M", identity="i", component="text", banks=1, experts=8,
        tokens=1, modalities={"text": 1},
        domains={"a": 1}, recorded=("2026-01-01T00:00:00Z",), trial_tokens=0, answers=answers,
    )  # fmt: skip


def test_every_question_is_in_the_table_of_contents() -> None:
    found = report(
        Answer(key="one", question="Is it so, or not?", answer="Yes."),
        Answer(key="two", question="And <this>?", answer="No."),
    )
    page = html_page(found, {})
    assert re.findall(r'href="#(\w+)"', page) == re.findall(r'<h2 id="(\w+)"', page) == ["one", "two"]
    assert '<meta name="viewport"' in page
    assert "- [Is it so, or not?](#is-it-so-or-not)" in markdown_page(found)


def test_the_most_specialised_experts_are_told_with_their_tokens(tmp_path) -> None:
    path = tmp_path / "p.db"
    write_profile(path, Router(planted={(0, "code"): (3,), (1, "prose"): (5,)}), {"code": 32, "prose": 32, "law": 32})
    favour(path, BankKey("text", 0, "mlp"), 3, 17)
    with ProfileDatabase(path) as database:
        whole = Profile.read(database)
        material = Material.of(whole, "text")
        listed = most_specialised(material)
        words = Words(whole, database, {one.bank for one in listed})
        answer = favourites(material, listed, words, lambda token: f" w{token}\n")
        # Read once: it is the same when it is asked for again.
        assert words.of(listed[0].bank) is words.of(listed[0].bank) is not None
        (table,) = answer.tables
        assert {row[:2] for row in table.rows} == {("0:3", "code"), ("1:5", "prose")}
        assert {row[0]: row[-1] for row in table.rows}["0:3"] == "“ w17⏎” 100%"
        assert re.match(r"Expert [35] of layer [01] stands out most: 100.0 % of the tokens of", answer.answer)
    write_profile(tmp_path / "q.db", Router(), {"code": 32, "prose": 32})
    with ProfileDatabase(tmp_path / "q.db") as database:
        whole = Profile.read(database)
        material = Material.of(whole, "text")
        assert most_specialised(material) == []
        answer = favourites(material, [], Words(whole, database, ()), str)
        assert answer.answer == "Nothing is shown: no expert is a specialist."

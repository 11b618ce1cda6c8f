import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import coterie
from coterie.spec import install_advice

ROOT = Path(coterie.__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_names_every_package_of_the_extra(extra: str) -> None:
    named = {str(Requirement(text)) for text in re.findall(r"'([^']+)'", install_advice(extra))}
    assert named == {str(Requirement(line)) for line in EXTRAS[extra]}


def test_nothing_advises_to_install_coterie_from_an_index_that_does_not_have_it() -> None:
    """Who follows such a line would get an error today, and perhaps a stranger's package tomorrow."""
    pages = {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("src/**/*.py")}
    pages.remove(ROOT / "RELEASING.md")  # which says when that ends
    advice = re.compile(r"pip install ['\"]?coterie\b(?![-/.])")
    assert [page.name for page in sorted(pages) if advice.search(page.read_text())] == []

"""The site's contents are the pages that there are; what builds it is pinned. (Links and anchors: `make site`.)"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .pages import ROOT

SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
FROM_THE_ROOT = {"architecture.md", "contributing.md", "releasing.md", "changelog.md"}


def pages_of(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from pages_of(inner)


def test_every_page_has_one_place_in_the_navigation() -> None:
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(pages_of(SITE["nav"])) == sorted(there | FROM_THE_ROOT)


def test_a_broken_link_or_anchor_fails_the_build() -> None:
    assert SITE["strict"] is True
    assert set(SITE["validation"]["links"].values()) == set(SITE["validation"]["nav"].values()) == {"warn"}


def test_what_the_makefile_installs_for_the_site_is_what_the_project_asks_for() -> None:
    lines = (ROOT / "requirements-docs.lock").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["docs"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def test_the_readme_does_not_send_readers_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(set(re.findall(r"\]\(((?:docs/)?[\w-]+\.md)", readme))) <= 15

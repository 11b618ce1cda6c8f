"""What must be there before a release, and what an index shows of the README."""

from __future__ import annotations

import io
import re
import runpy
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from .conftest import ROOT

pytest.importorskip("hatchling")
releasing = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "releasing.py")))

URLS = {name: f"https://host.example/coterie/{name}" for name in releasing.ADDRESSES}
URLS["Repository"] = "https://host.example/coterie"


@pytest.fixture
def clone() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def addressed(tmp_path: Path, clone: str) -> str:
    """README as an index would show it, if whoever releases did what RELEASING.md says."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    told = re.findall(r"^replacement = '.*https://.*'$", (ROOT / "RELEASING.md").read_text(), re.MULTILINE)
    assert len(told) == 2
    replacements = iter(line.replace("https://HOST/OWNER/coterie", URLS["Repository"]) for line in told)
    changed, count = re.subn(r"^replacement = .*$", lambda _: next(replacements), text, flags=re.MULTILINE)
    assert count == 2
    (tmp_path / "pyproject.toml").write_text(changed, encoding="utf-8")
    shutil.copy(ROOT / "README.md", tmp_path)
    return str(releasing.readme_of_index(tmp_path))


def test_no_link_on_the_index_is_broken(clone: str) -> None:
    shown = releasing.readme_of_index(ROOT)
    assert releasing.relative_links(clone)
    assert releasing.relative_links(shown) == []
    assert code_of(shown) == code_of(clone)
    if "urls" in releasing.project(ROOT):
        urls = releasing.project(ROOT)["urls"]
        assert releasing.missing_addresses(urls) == releasing.broken_links(clone, shown, urls) == []


def test_with_the_replacements_of_the_checklist_links_lead_into_the_repository(clone: str, addressed: str) -> None:
    version = releasing.project(ROOT)["version"]
    assert releasing.broken_links(clone, addressed, URLS) == []
    for target in releasing.relative_links(clone):
        assert re.search(rf"{re.escape(URLS['Repository'])}/(blob|raw)/v{version}/{re.escape(target)}\)", addressed)
    assert code_of(addressed) == code_of(clone)


def code_of(page: str) -> list[str]:
    """Commands and Python: nothing in them may be taken for a link."""
    return re.findall(r"^    .*$|^```(?s:.*?)^```", page, re.MULTILINE)


def test_nobody_is_sent_to_a_package_that_is_not_ours() -> None:
    if "urls" in releasing.project(ROOT):
        return
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")]
    advised = re.compile(r"pip install [^\n]*?(?<![\w./-])coterie(?![\w./-])")
    assert advised.search("pip install 'coterie[analysis]'")
    assert not advised.search("pip install dist/coterie-0.1.0-py3-none-any.whl")
    assert [str(page) for page in pages if advised.search(page.read_text(encoding="utf-8"))] == []


def test_links_that_an_index_has_lost_are_told(clone: str) -> None:
    assert releasing.broken_links(clone, "no links", {}) == releasing.broken_links(clone, "no links", URLS)
    assert len(releasing.broken_links(clone, "no links", URLS)) == 1
    assert "a.md" in releasing.broken_links("[a](a.md)", "[a](a.md)", URLS)[0]
    assert releasing.broken_links("[a](a.md)", f"[a]({URLS['Repository']}/blob/v1/a.md)", URLS) == []
    assert releasing.relative_links('<img src="a.png"> [b](#c) [d](https://e)') == ["a.png", "#c"]


def test_addresses_must_be_there() -> None:
    assert releasing.missing_addresses(URLS) == []
    assert len(releasing.missing_addresses({})) == len(releasing.ADDRESSES)
    assert "Issues" in releasing.missing_addresses({**URLS, "Issues": "http://host.example"})[0]


@pytest.mark.parametrize(
    ("head", "faults"),
    [
        ("## [Unreleased]\n\n## [1.2.0] - 2026-01-31\n\n- x\n", 0),
        ("## [1.2.0] - 2026-01-31\n", 0),
        ("## [Unreleased]\n\n- x\n\n## [1.2.0] - 2026-01-31\n", 1),
        ("## [Unreleased]\n\n- x\n", 2),
        ("## [Unreleased]\n\n## [1.1.0] - 2026-01-31\n", 1),
        ("## [1.2.0]\n", 1),
        ("", 1),
    ],
)
def test_the_changelog_names_the_release(head: str, faults: int) -> None:
    assert len(releasing.changelog_faults(f"# Changelog\n\n{head}", "1.2.0")) == faults


def test_dist_must_be_made_of_these_sources(tmp_path: Path) -> None:
    assert len(releasing.stale_files(tmp_path, "1.2.0")) == 4
    (tmp_path / "dist").mkdir()
    (tmp_path / "a.py").write_text("1")
    for platform in releasing.PLATFORMS:
        (tmp_path / "dist" / f"coterie-1.2.0-py3-none-{platform}.whl").touch()
    with tarfile.open(tmp_path / "dist" / "coterie-1.2.0.tar.gz", "w:gz") as archive:
        for name in ("a.py", "PKG-INFO"):
            member = tarfile.TarInfo(f"coterie-1.2.0/{name}")
            member.size = 1
            archive.addfile(member, io.BytesIO(b"1"))
    assert releasing.stale_files(tmp_path, "1.2.0") == []
    (tmp_path / "a.py").write_text("2")
    (tmp_path / "dist" / "coterie-1.1.0.tar.gz").touch()
    assert len(releasing.stale_files(tmp_path, "1.2.0")) == 2


def test_the_files_are_those_that_are_made() -> None:
    wheels = runpy.run_path(str(ROOT / "scripts" / "wheels.py"))
    assert tuple(kind.platform for kind in wheels["KINDS"]) == releasing.PLATFORMS

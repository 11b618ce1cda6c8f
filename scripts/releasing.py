"""Says what is still missing for a release: `make release-check`. What to do about it is in RELEASING.md.

Looks at what nobody notices before the files are on the index: addresses, links, the changelog, the tag, and whether
dist/ was made of just this commit. The exit code is 1 if anything is missing.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

ROOT = Path(__file__).resolve().parent.parent

ADDRESSES = ("Repository", "Documentation", "Issues", "Changelog")
"""What [project.urls] must have."""

PLATFORMS = ("any", "manylinux_2_28_x86_64", "manylinux_2_28_aarch64")

LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def project(root: Path) -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def readme_of_index(root: Path) -> str:
    """README.md as a package index shows it."""
    return ProjectMetadata(str(root), PluginManager()).core.readme


def relative_links(text: str) -> list[str]:
    """Where links and pictures of a page in Markdown lead that have no host."""
    targets = [one or other for one, other in LINK.findall(text)]
    return [target for target in targets if not re.match(r"(https?://|mailto:)", target)]


def missing_addresses(urls: Mapping[str, str]) -> list[str]:
    """What is wrong with [project.urls]."""
    return [
        f"[project.urls] has no {name} that begins with https://"
        for name in ADDRESSES
        if not urls.get(name, "").startswith("https://")
    ]


def broken_links(clone: str, index: str, urls: Mapping[str, str]) -> list[str]:
    """Links of README that lead nowhere on an index.

    Args:
        clone: README as it is in a clone.
        index: As the index shows it.
        urls: [project.urls].
    """
    repository = urls.get("Repository", "").rstrip("/")
    found = [f"README: {target} leads nowhere on an index" for target in relative_links(index)]
    wanted = relative_links(clone)
    lost = [target for target in wanted if not repository or not re.search(_absolute(repository, target), index)]
    if lost:
        found.append(
            f"README: {len(lost)} of {len(wanted)} links into the repository are not there on an index ({lost[0]}, …): "
            "write its address into the two replacements of fancy-pypi-readme in pyproject.toml"
        )
    return found


def _absolute(repository: str, target: str) -> str:
    return rf"{re.escape(repository)}/[^)\s\"]*{re.escape(target)}[)\"]"


def changelog_faults(text: str, version: str) -> list[str]:
    """What is wrong with the head of CHANGELOG.md."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    found = []
    if parts and parts[0].startswith("[Unreleased]"):
        if parts[0].removeprefix("[Unreleased]").strip():
            found.append("CHANGELOG: lines under [Unreleased] belong to this release")
        del parts[0]
    if not parts or not re.match(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n", parts[0]):
        found.append(f"CHANGELOG: the newest heading is not `## [{version}] - YEAR-MONTH-DAY`")
    return found


def untagged(root: Path, version: str) -> list[str]:
    """What is wrong with the commit."""
    found = []
    if _git(root, "status", "--porcelain"):
        found.append("git: not everything is committed")
    if f"v{version}" not in _git(root, "tag", "--points-at", "HEAD").split():
        found.append(f"git: this commit has no tag v{version}")
    return found


def stale_files(root: Path, version: str) -> list[str]:
    """What is wrong with dist/."""
    folder = root / "dist"
    source = f"coterie-{version}.tar.gz"
    wanted = {source, *(f"coterie-{version}-py3-none-{platform}.whl" for platform in PLATFORMS)}
    there = {path.name for path in folder.glob("*")}
    found = [f"dist: {name} is not there" for name in sorted(wanted - there)]
    found += [f"dist: {name} is not of this release" for name in sorted(there - wanted)]
    if source in there and (other := _changed(root, folder / source)):
        found.append(f"dist: made of other sources than these ({other[0]}, …): run `make wheels` again")
    return found


def _changed(root: Path, source: Path) -> list[str]:
    """Files of a source distribution that are not as they are here."""
    changed = []
    with tarfile.open(source) as archive:
        for member in archive:
            content = archive.extractfile(member)
            name = member.name.partition("/")[2]
            if content is None or name == "PKG-INFO":
                continue
            here = root / name
            if not here.is_file() or here.read_bytes() != content.read():
                changed.append(name)
    return changed


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Prints what is missing, by subject."""
    table = project(ROOT)
    urls, version = table.get("urls", {}), table["version"]
    clone = (ROOT / "README.md").read_text(encoding="utf-8")
    checks: dict[str, Callable[[], list[str]]] = {
        "addresses": lambda: missing_addresses(urls),
        "links": lambda: broken_links(clone, readme_of_index(ROOT), urls),
        "changelog": lambda: changelog_faults((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version),
        "commit": lambda: untagged(ROOT, version),
        "files": lambda: stale_files(ROOT, version),
    }
    failed = False
    for name, check in checks.items():
        faults = check()
        failed |= bool(faults)
        print(f"{name:<11}{'missing' if faults else 'ok'}", *(f"    {fault}" for fault in faults), sep="\n")
    print("RELEASING.md says what to do." if failed else f"Coterie {version} can be released.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

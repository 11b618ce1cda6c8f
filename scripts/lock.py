"""Writes `requirements.lock` from the packages installed in this environment, or checks it.

The lock pins everything that running, testing and building Coterie takes, indirect requirements included, and nothing
else. Local version labels (``2.13.0+cpu``) are left out, so that the pin can be satisfied from any index.

To change a pin: install the version wanted, run `make lock`, commit both files.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
# What a CUDA build of torch brings along: another build of the same pin, not another pin.
ACCELERATOR_PACKAGES = re.compile(r"(nvidia|cuda|triton)\b.*")
HEADER = """\
# What running, testing and building Coterie takes, pinned. Written by scripts/lock.py; checked by `make check`.
# torch has its CPU build on its own index: where pip finds a CUDA build first, set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu or install torch beforehand (CONTRIBUTING.md).
"""


def declared() -> list[Requirement]:
    """The direct requirements that pyproject.toml states: to build, to run, to develop."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    texts = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
        # What hatchling asks for when it makes an editable install.
        "editables",
    ]
    return [Requirement(text) for text in texts]


def needed_by(requirement: Requirement) -> Iterator[Requirement]:
    """What an installed package requires on this platform, with the extras asked for."""
    for text in metadata.requires(requirement.name) or []:
        inner = Requirement(text)
        if requirement.name == "torch" and ACCELERATOR_PACKAGES.match(inner.name):
            continue
        extras = requirement.extras or {""}
        if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
            yield inner


def closure() -> dict[str, str]:
    """Name -> installed version of everything needed, found from the declared requirements.

    Raises:
        SystemExit: If something is not installed, or not within the range that is asked for.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = declared()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            sys.exit(f"{requirement} is needed but not installed: run `make install`.")
        if not requirement.specifier.contains(Version(installed), prereleases=True):
            sys.exit(f"{name} {installed} is installed, but {requirement} is asked for.")
        versions[name] = Version(installed).public
        queue.extend(needed_by(requirement))
    return versions


def pins() -> dict[str, str]:
    """Name -> version as the lock has them."""
    found = {}
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"([a-z0-9-]+)==(\S+)", line)
        if match:
            found[match.group(1)] = match.group(2)
        elif line and not line.startswith("#"):
            sys.exit(f"{LOCK.name}: not a pin: {line!r}")
    return found


def unsatisfied(found: dict[str, str]) -> list[str]:
    """Requirements of pyproject.toml that the pins do not satisfy."""
    return [
        str(requirement)
        for requirement in declared()
        if not requirement.specifier.contains(
            found.get(canonicalize_name(requirement.name), "0.dev0"), prereleases=True
        )
    ]


def main() -> int:
    """Writes the lock, or with ``--check`` says how it differs from what is installed and declared."""
    wanted = closure()
    if sys.argv[1:] != ["--check"]:
        lines = [f"{name}=={version}" for name, version in sorted(wanted.items())]
        LOCK.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
        print(f"{LOCK.name}: {len(lines)} pins")
        return 0
    found = pins()
    differences = [f"{text}: not satisfied by the lock" for text in unsatisfied(found)]
    differences += [
        f"{name}: locked {found.get(name, 'not at all')}, installed and needed {wanted.get(name, 'not at all')}"
        for name in sorted({*wanted, *found})
        if wanted.get(name) != found.get(name)
    ]
    for line in differences:
        print(f"{LOCK.name}: {line}")
    if differences:
        print("If the installed versions are the ones wanted: `make lock`. Else: `make install`.")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())

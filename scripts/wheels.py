"""Makes all that a package index gets: the source distribution, a wheel for each platform, and one for all others.

    make wheels                            # into dist/
    python scripts/wheels.py FOLDER        # in an environment with requirements-wheels.lock

Wheels are made of the source distribution, in a folder of their own, so nothing that lies about here gets into them.
The native library is compiled by zig's C compiler, which is a package of PyPI: it compiles for either processor on
either, and links with as old a glibc as it is told. No flag names a processor: the library chooses its instructions
when it runs. Nothing comes into the folder unless every wheel passes its check.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
GLIBC = (2, 28)
"""The oldest one that wheels work with: that of torch's own wheels."""

LIBRARY = "coterie/native/libcoterie.so"

MOST_BYTES = 90_000_000
"""Of a file: an index takes less than 100 MB, and the models in the package are to leave room below that."""


class WheelError(Exception):
    """A wheel was not made, or is not what it should be."""


@dataclass(frozen=True)
class Kind:
    """One of the wheels.

    Attributes:
        platform: The last part of its tag.
        processor: What its native library is compiled for; None if it has none.
    """

    platform: str
    processor: str | None

    @property
    def environment(self) -> dict[str, str]:
        """Variables for ``hatch_build.py``."""
        if self.processor is None:
            return {"COTERIE_NATIVE": "skip"}
        target = f"{self.processor}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"
        # Without debug information, in which the folders of this machine would be named.
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-g0", "-s"]
        return {
            "COTERIE_NATIVE": "require",
            "COTERIE_WHEEL_PLATFORM": self.platform,
            "CC": shlex.join(command),
            "ZIG_GLOBAL_CACHE_DIR": str(Path(sys.prefix, "zig-cache")),
        }


KINDS = (
    Kind("any", None),
    *(Kind(f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{processor}", processor) for processor in ("x86_64", "aarch64")),
)


def build(folder: Path) -> list[Path]:
    """Makes the source distribution and the wheels.

    Args:
        folder: Where they come; of the same names, what was there is replaced.

    Returns:
        The files, the source distribution first.

    Raises:
        WheelError: If one cannot be made, or is not what it should be. Then none is put into ``folder``.
    """
    with tempfile.TemporaryDirectory(prefix="coterie-wheels-") as work:
        made = [_hatchling(ROOT, "sdist", Path(work, "sdist"), {})]
        check_size(made[0])
        for kind in KINDS:
            tree = _unpacked(made[0], Path(work, kind.platform, "tree"))
            wheel = _hatchling(tree, "wheel", Path(work, kind.platform), kind.environment)
            check(wheel, kind)
            made.append(wheel)
        folder.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.move(path, folder / path.name)) for path in made]


def check(wheel: Path, kind: Kind) -> None:
    """Looks at what was made.

    Raises:
        WheelError: If its name is not that of its kind, it is larger than :data:`MOST_BYTES`, a library is missing or
            is there where none should be, or the library needs what not every system of the platform has.
    """
    check_size(wheel)
    tags = {str(tag) for tag in parse_wheel_filename(wheel.name)[3]}
    if tags != {f"py3-none-{kind.platform}"}:
        raise WheelError(f"{wheel.name} has other tags than py3-none-{kind.platform}")
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith((".so", ".dylib", ".pyd"))]
    if libraries != ([] if kind.processor is None else [LIBRARY]):
        raise WheelError(f"{wheel.name} has the libraries {libraries}")
    if kind.processor is not None:
        _check_platform(wheel, kind)


def check_size(path: Path) -> None:
    """Looks whether an index would take a file, with room to spare.

    Raises:
        WheelError: If it would not.
    """
    if path.stat().st_size > MOST_BYTES:
        raise WheelError(f"{path.name} has {path.stat().st_size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f} MB")


def _check_platform(wheel: Path, kind: Kind) -> None:
    """Asks auditwheel what the library needs: versions of glibc's functions, and other libraries."""
    command = [sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WheelError(f"auditwheel cannot read {wheel.name}:\n{done.stdout}{done.stderr}")
    told = json.loads(done.stdout)
    found = re.fullmatch(rf"manylinux_(\d+)_(\d+)_{kind.processor}", told["overall_tag"])
    needed = tuple(int(part) for part in found.groups()) if found else None
    if needed is None or needed > GLIBC or told["external_libs"] or told["unsupported_isa"]:
        raise WheelError(f"{wheel.name} does not run on every {kind.platform}: {json.dumps(told, indent=2)}")


def _hatchling(tree: Path, target: str, folder: Path, environment: dict[str, str]) -> Path:
    """What hatchling makes of a tree of sources."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COTERIE_") and name != "CC"}
    done = subprocess.run(command, cwd=tree, env={**clean, **environment}, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.tar.gz" if target == "sdist" else "*.whl"))
    if done.returncode != 0 or len(found) != 1:
        raise WheelError(f"{shlex.join(command)} failed in {tree}:\n{done.stdout}{done.stderr}")
    return found[0]


def _unpacked(source: Path, folder: Path) -> Path:
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def main() -> int:
    """Does what the command line says."""
    if len(sys.argv) != 2:
        print("Usage: python scripts/wheels.py FOLDER", file=sys.stderr)
        return 2
    try:
        made = build(Path(sys.argv[1]))
    except WheelError as error:
        print(error, file=sys.stderr)
        return 1
    for path in made:
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

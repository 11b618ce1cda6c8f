"""Compiles the C files of this folder into one library, beside them; needs a C compiler and nothing else.

Run by the build hook of the project (``hatch_build.py``), which loads this file by its path: it must not import
anything of Coterie. By hand: ``python src/coterie/native/build.py``.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER / f"libcoterie{'.dylib' if sys.platform == 'darwin' else '.so'}"

_COMPILERS = ("cc", "gcc", "clang")
# Bits are promised: sums keep their order, and no product is fused with a sum unless the code says so.
_EXACTNESS = ("-ffp-contract=off",)
# Neither changes a bit; they let loops with a condition become vectors.
_QUIET = ("-fno-math-errno", "-fno-trapping-math")
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", *_EXACTNESS, *_QUIET)


class BuildError(Exception):
    """The library was not built; the message says why."""


def sources() -> list[Path]:
    """The C files, in order."""
    return sorted(FOLDER.glob("*.c"))


def fingerprint() -> str:
    """Tells sources apart: a library knows which ones it was built from."""
    digest = hashlib.sha256()
    for path in sorted([*FOLDER.glob("*.c"), *FOLDER.glob("*.h")]):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def compiler() -> list[str]:
    """``$CC``, or the first compiler on the path.

    Raises:
        BuildError: If there is none.
    """
    given = shlex.split(os.environ.get("CC", ""))
    if given:
        return given
    found = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        raise BuildError(f"there is no C compiler ({', '.join(_COMPILERS)}, or the one that CC names)")
    return [found]


def build(target: Path = LIBRARY) -> Path:
    """Compiles and links; what was there before is replaced in one step, and stays if anything fails.

    Args:
        target: The library's file.

    Returns:
        ``target``.

    Raises:
        BuildError: If there is no compiler, or it fails.
    """
    if os.name != "posix":
        raise BuildError(f"it is written for POSIX systems, and this is {platform.system()}")
    command = compiler()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as work:
        flags = (*_FLAGS, f'-DCOTERIE_FINGERPRINT="{fingerprint()}"')
        objects = {str(source): str(Path(work, source.stem + ".o")) for source in sources()}
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda pair: _run([*command, *flags, "-c", pair[0], "-o", pair[1]]), objects.items()))
        linked = Path(work, target.name)
        _run([*command, "-shared", "-pthread", *objects.values(), "-lm", "-o", str(linked)])
        linked.replace(target)
    return target


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}".rstrip())


if __name__ == "__main__":
    try:
        build()
    except BuildError as error:
        sys.exit(f"The native library was not built: {error}.")

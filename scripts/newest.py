"""Installs the newest transformers that pyproject.toml allows into an environment, unless requirements.lock has it.

    python scripts/newest.py .venv-newest [PIP ARGUMENTS ...]

What the release needs and the environment does not find comes with it. The exit code is 0 if the release is newer than
the one in requirements.lock, 3 if it is the same one, and 1 if the package index cannot be asked.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
SAME = 3


def allowed() -> str:
    """The requirement of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (text,) = [text for text in project["dependencies"] if Requirement(text).name == "transformers"]
    return str(text)


def locked() -> Version:
    """The release that requirements.lock pins."""
    (pin,) = re.findall(
        r"^transformers==(\S+)$", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE
    )
    return Version(pin)


def main() -> int:
    """Does what the command line says."""
    if len(sys.argv) < 2:
        print("Usage: python scripts/newest.py ENVIRONMENT [PIP ARGUMENTS ...]", file=sys.stderr)
        return 2
    python = str(Path(sys.argv[1]) / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", *sys.argv[2:]]
    if subprocess.run([*install, allowed()], check=False).returncode != 0:
        print("No transformers could be installed: is there a package index?", file=sys.stderr)
        return 1
    question = "from importlib import metadata; print(metadata.version('transformers'))"
    told = subprocess.run([python, "-c", question], capture_output=True, text=True, check=True).stdout
    newest = Version(told.strip())
    if newest == locked():
        print(f"transformers {newest} is the newest release, and the one in requirements.lock: nothing else to test.")
        return SAME
    print(f"Testing with transformers {newest}; requirements.lock has {locked()}.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

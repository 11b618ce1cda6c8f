"""Looks for known advisories about the packages that the locks pin, with pip-audit.

    python scripts/advisories.py .venv-audit [PIP ARGUMENTS ...]

pip-audit, which is installed into that environment, asks the advisory service of PyPI. Without a network nothing
is found out: that is said, and is no failure. The exit code is 1 if a pinned package has a known advisory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
AGAIN = "Run `make audit` where there is a network before a release."
LIMIT_S = 300
"""Where a network swallows what is sent, pip-audit waits for each package."""


def install(environment: Path, arguments: list[str]) -> str | None:
    """Installs pip-audit unless it is there; the path of its command, or None if it cannot be had."""
    command = environment / "bin" / "pip-audit"
    if not command.exists():
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *arguments, "pip-audit"], check=False)
    return str(command) if command.exists() else None


def audit(command: str, lock: Path) -> list[dict[str, Any]] | None:
    """What pip-audit says about each pin of a lock; None if it cannot say anything."""
    arguments = [
        "--requirement",
        str(lock),
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    try:
        done = subprocess.run(
            [command, *arguments], capture_output=True, text=True, check=False, timeout=LIMIT_S, cwd=ROOT
        )
        dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    return dependencies


def main() -> int:
    """Does what the command line says."""
    if len(sys.argv) < 2:
        print("Usage: python scripts/advisories.py ENVIRONMENT [PIP ARGUMENTS ...]", file=sys.stderr)
        return 2
    command = install(Path(sys.argv[1]).resolve(), sys.argv[2:])
    if command is None:
        print(f"pip-audit cannot be installed here: nothing was looked up. {AGAIN}")
        return 0
    found, unknown = 0, 0
    for lock in sorted(ROOT.glob("requirements*.lock")):
        # Whoever did not answer for one lock is not waited for again.
        dependencies = None if unknown else audit(command, lock)
        looked_up = [entry for entry in dependencies or () if "vulns" in entry]
        skipped = [entry for entry in dependencies or () if "vulns" not in entry]
        if not looked_up:
            print(f"{lock.name}: not looked up, as the advisory service cannot be reached from here.")
            unknown += 1
            continue
        for entry in looked_up:
            for advisory in entry["vulns"]:
                fixed = ", ".join(advisory.get("fix_versions") or ()) or "no release yet"
                print(f"{lock.name}: {entry['name']} {entry['version']}: {advisory['id']}, mended in {fixed}")
                found += 1
        for entry in skipped:
            print(f"{lock.name}: {entry['name']}: not looked up ({entry.get('skip_reason', 'no reason given')})")
        print(f"{lock.name}: {len(looked_up)} pins looked up")
    if unknown:
        print(AGAIN)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Every check but the tests, in one command: the same for people (`make check`) and for CI.

Runs all of them even if one fails, prints what failed, and ends with 1 if any did.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

CHECKS: tuple[tuple[str, list[str]], ...] = (
    ("format", [str(BIN / "ruff"), "format", "--check", "."]),
    ("lint", [str(BIN / "ruff"), "check", "."]),
    ("types", [str(BIN / "mypy")]),
    ("layers", [str(BIN / "lint-imports")]),
    ("lock", [sys.executable, "scripts/lock.py", "--check"]),
    ("docs", [sys.executable, "scripts/docs.py", "--check"]),
)


def main() -> int:
    """Runs the checks named on the command line, or all."""
    names = [name for name, _ in CHECKS]
    wanted = sys.argv[1:] or names
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        print(f"No such check: {', '.join(unknown)}. There are: {', '.join(names)}.", file=sys.stderr)
        return 2
    failed = []
    for name, arguments in CHECKS:
        if name not in wanted:
            continue
        start = time.monotonic()
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        print(f"{name:<8}{'ok' if done.returncode == 0 else 'FAILED':<8}{time.monotonic() - start:5.1f} s", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout + done.stderr, flush=True)
    if failed:
        print(f"Failed: {', '.join(failed)}. Format and imports: `make fix`; generated docs: `make docs`.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

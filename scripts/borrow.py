"""Lets another virtual environment find, after its own packages, those of this one and Coterie's sources.

    python scripts/borrow.py .venv-oldest

So a second release of one package can be tested without installing all the others again.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Writes a .pth file into the environment named on the command line."""
    if len(sys.argv) != 2:
        print("Usage: python scripts/borrow.py ENVIRONMENT", file=sys.stderr)
        return 2
    python = Path(sys.argv[1]) / "bin" / "python"
    question = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs = subprocess.run([str(python), "-c", question], capture_output=True, text=True, check=True).stdout.strip()
    # This environment may itself have borrowed, and .pth files that lie in borrowed folders are not read.
    lent = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    paths = dict.fromkeys([str(ROOT / "src"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *lent])
    (Path(theirs) / "borrowed.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

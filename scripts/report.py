"""Records what the bundled model's experts do on a folder of material, and writes docs/report from it.

    python scripts/report.py FOLDER [PROFILE]

FOLDER holds a UTF-8 text for each domain (``code.txt`` is the domain code), and may hold sounds in ``speech`` and
pictures in ``images``. PROFILE is where the profile is kept (default: benchmarks/work/report.db); what is
recorded there is not recorded again. The model reads prose.txt, or else the first text, for what a profile does not
keep.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEGMENT_TOKENS = 32
"""The sounds and pictures are few tokens each."""


def main(arguments: list[str]) -> int:
    """Records and writes; the exit code of what failed."""
    if not 1 <= len(arguments) <= 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    profile = Path(arguments[1]) if len(arguments) == 2 else ROOT / "benchmarks" / "work" / "report.db"
    texts = sorted(folder.glob("*.txt"))
    if not texts:
        print(f"There is no text (*.txt) in {folder}.", file=sys.stderr)
        return 2
    profile.parent.mkdir(parents=True, exist_ok=True)
    material = [word for text in texts for word in ("--text", f"{text.stem}={text}")]
    for kind in ("speech", "images"):
        if (folder / kind).is_dir():
            material += [f"--{kind}", str(folder / kind)]
    target = ROOT / "docs" / "report"
    read = next((text for text in texts if text.stem == "prose"), texts[0])
    commands = (
        ["profile", "record", "bundled", "-o", str(profile), "--segment-tokens", str(SEGMENT_TOKENS), *material],
        ["report", "bundled", "--profile", str(profile), "-o", str(target), "--text", str(read)],
    )
    for command in commands:
        done = subprocess.run([sys.executable, "-m", "coterie", *command], check=False)
        if done.returncode:
            return done.returncode
    # The page in Markdown and its pictures are what is committed; HTML is the same once more.
    (target / "report.html").unlink()
    (target / "report.md").rename(target / "index.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

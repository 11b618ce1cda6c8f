"""Records the demonstration for the README: nothing of it is typed by hand.

    python scripts/recording.py            runs `coterie demo` and writes what it printed between the marks
    python scripts/recording.py --check    runs it again; ends with 1 if the README shows anything else

Of the six domains of text one is shown. A check compares neither times and hit rates, which differ from run to run, nor
the generated sentence, which differs between processors.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "README.md"
PLACE = re.compile(r"(<!-- recording: demo -->\n).*?(<!-- end of recording -->)", re.DOTALL)
STEPS = ("2  ", "3  ")
SHOWN = ("prose", "speech", "picture")
LABEL = re.compile(r"([a-z]+) {2,}\S")
GENERATED = re.compile(r"^(prose) +\S.*(?:\n +.*)*", re.MULTILINE)
SPEED = re.compile(r"^Hit rate .*", re.MULTILINE)
WIDTH = 100


def demonstration() -> str:
    """What `coterie demo` prints."""
    environment = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "coterie", "demo"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def excerpt(printed: str) -> str:
    """The steps that are shown, without the domains that are not."""
    kept = []
    step_shown = entry_shown = False
    for line in printed.splitlines():
        if re.match(r"\d  ", line) or line.startswith("Done in"):
            step_shown = line.startswith(STEPS)
        if not line.startswith(" "):
            label = LABEL.match(line)
            entry_shown = not label or label[1] in SHOWN
        if step_shown and entry_shown:
            kept.append(line.rstrip().rstrip("─").rstrip())
    return "\n".join(kept).strip("\n")


def block(text: str) -> str:
    """The recording as the page has it."""
    return f"```console\n$ coterie demo\n…\n{text}\n…\n```\n"


def comparable(text: str) -> str:
    """The recording without what differs between two runs or two processors."""
    return SPEED.sub("…", GENERATED.sub(r"\1 …", text))


def main() -> int:
    """Writes or checks the recording."""
    page = PAGE.read_text(encoding="utf-8")
    found = PLACE.search(page)
    if not found:
        print(f"{PAGE.name} has no place for the recording.", file=sys.stderr)
        return 1
    new = block(excerpt(demonstration()))
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(PLACE.sub(lambda match: match[1] + new + match[2], page), encoding="utf-8")
        print(f"wrote the recording into {PAGE.name}")
        return 0
    if comparable(found[0]) == comparable(found[1] + new + found[2]):
        return 0
    print(f"{PAGE.name} does not show what `coterie demo` prints: run python scripts/recording.py.", file=sys.stderr)
    print(new, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""Records what commands print, for the README and for docs/partial-stores.md: nothing of it is typed by hand.

    python scripts/recording.py            runs the commands, and writes what they printed into the pages
    python scripts/recording.py --check    runs them again; ends with 1 if a page shows anything else

The README has the demonstration, with one of its six domains of text. docs/partial-stores.md has blocks of commands,
which run one after the other in an empty folder; the folder's name and times are shortened. A check compares neither
times, hit rates and memory of the process, which differ from run to run, nor generated sentences, which differ between
processors.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("2  ", "3  ", "4  ")
"""Of the demonstration, that are shown."""
SHOWN = ("prose", "speech", "picture", "ada")
LABEL = re.compile(r"([a-z]+) {2,}\S")
WIDTH = 200
"""Columns of the terminal for commands; the demonstration takes 80."""

DEMONSTRATION = re.compile(r"(<!-- recording: demo -->\n).*?(<!-- end of recording -->)", re.DOTALL)
BLOCK = re.compile(r"(?<=^```console\n)\$ coterie .*?(?=^```$)", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (coterie .*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
TIME = re.compile(r"in [\d.]+ s \([^)]*\)")
DIFFERENT = re.compile(
    r"^(?:Hit rate|minimum) .*|^prose +\S.*(?:\n +.*)*|(?<=-q\n)(?!Error).*\n|(?<=mask\n|drop\n)(?:(?!\$ |```).*\n)+",
    re.MULTILINE,
)
"""What differs between two runs, or two processors."""


def run(arguments: list[str], folder: Path, width: int) -> str:
    """What a command prints, or its error."""
    environment = {**os.environ, "COLUMNS": str(width), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else done.stdout


def excerpt(printed: str) -> str:
    """The steps of the demonstration that are shown, without the domains that are not."""
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


def with_demonstration(page: str) -> str:
    """The page with what the demonstration prints now."""
    shown = excerpt(run(["coterie", "demo"], ROOT, 80))
    block = f"```console\n$ coterie demo\n…\n{shown}\n…\n```\n"
    return DEMONSTRATION.sub(lambda match: match[1] + block + match[2], page)


def with_examples(page: str) -> str:
    """The page with what its blocks of commands print now."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()

        def again(match: re.Match[str]) -> str:
            return f"$ {match[1]}\n{shortened(run(shlex.split(match[1]), folder, WIDTH), folder)}"

        return BLOCK.sub(lambda block: COMMAND.sub(again, block[0]), page)


def shortened(printed: str, folder: Path) -> str:
    """Output without the folder's name, times, and blanks at the ends of lines."""
    text = TIME.sub("in … s", printed.replace(str(folder), "…"))
    return "".join(f"{line.rstrip()}\n" for line in text.rstrip("\n").splitlines())


def comparable(page: str) -> str:
    """The page without what differs between two runs or two processors."""
    return DIFFERENT.sub("…\n", page)


PAGES: dict[Path, Callable[[str], str]] = {
    ROOT / "README.md": with_demonstration,
    ROOT / "docs" / "partial-stores.md": with_examples,
}


def main() -> int:
    """Writes or checks the pages."""
    stale = False
    for path, renewed in PAGES.items():
        page = path.read_text(encoding="utf-8")
        new = renewed(page)
        if sys.argv[1:] != ["--check"]:
            path.write_text(new, encoding="utf-8")
        elif comparable(new) != comparable(page):
            stale = True
            print(f"{path} is not what the commands print: run python scripts/recording.py.\n{new}", file=sys.stderr)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())

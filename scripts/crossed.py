"""Counts the files of Coterie that one decode step runs through, on the bundled model.

    python scripts/crossed.py [--names]

Who wants to understand a step has to read these. Counted are the Python files below ``src`` in which a function is
entered between the beginning and the end of a step, in any thread: with all experts in memory, with at least one that
has to be read, and of a store in four bits. C is counted apart: the files that the native library is built of.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent / "src" / "coterie"


class Crossed:
    """Collects the files while :attr:`counting` is set; install it before threads begin."""

    def __init__(self) -> None:
        self.counting = False
        self.files: set[str] = set()

    def install(self) -> None:
        """Listens in this thread and in all that begin from now on."""
        threading.setprofile(self._entered)
        sys.setprofile(self._entered)

    def _entered(self, frame: FrameType, event: str, argument: Any) -> None:
        if self.counting and event == "call":
            self.files.add(frame.f_code.co_filename)

    @contextmanager
    def step(self) -> Iterator[set[str]]:
        """Names below the package, of what is entered within the block."""
        self.files = set()
        names: set[str] = set()
        self.counting = True
        try:
            yield names
        finally:
            self.counting = False
            own = {Path(name) for name in self.files if name.startswith(str(SOURCE))}
            names.update(path.relative_to(SOURCE).as_posix() for path in own)


def steps(crossed: Crossed, model: Any, count: int) -> Iterator[tuple[int, set[str]]]:
    """Experts read, and files, of one decode step after the other."""
    import torch

    # As many different tokens: nearly every expert is asked for.
    ids = torch.arange(16, 528)[None]
    with torch.inference_mode():
        made = model(ids, use_cache=True)
        for _ in range(count):
            token = made.logits[:, -1:].argmax(-1)
            before = model.coterie.stats().total.misses
            with crossed.step() as names:
                made = model(token, past_key_values=made.past_key_values, use_cache=True)
            yield model.coterie.stats().total.misses - before, names


def measure() -> dict[str, list[str]]:
    """Kind of step → the files that it crosses, sorted."""
    crossed = Crossed()
    crossed.install()
    import coterie

    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        coterie.extract("bundled", Path(folder) / "int4", scheme="int4", dense_scheme="int4")
        for name, path, share, missing in (
            ("resident", "bundled", "100%", False),
            ("with a miss", "bundled", "25%", True),
            ("int4, resident", Path(folder) / "int4", "100%", False),
            ("int4, with a miss", Path(folder) / "int4", "25%", True),
        ):
            with coterie.load(path, expert_memory=share, prefetch="off") as model:
                # The first steps read what is not there yet, or try ways out.
                own = [names for missed, names in list(steps(crossed, model, 40))[8:] if (missed > 0) == missing]
            if not own:
                raise SystemExit(f"No step is {name}.")
            found[name] = sorted(min(own, key=len))
    return found


def main() -> int:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", action="store_true", help="print the files, too")
    parser.add_argument("--json", action="store_true", help="print kind → files as JSON")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = measure()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for kind, files in found.items():
        print(f"{kind:18} {len(files):3} files of Python")
        if options.names:
            print("".join(f"    {name}\n" for name in files), end="")
    sources = list((SOURCE / "native").glob("*.[ch]"))
    print(f"{'native library':18} {len(sources):3} files of C")
    return 0


if __name__ == "__main__":
    sys.exit(main())

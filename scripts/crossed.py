"""Counts the files of Coterie that one decode step runs through, on the bundled model.

    python scripts/crossed.py [--names]

Who wants to understand a step has to read these. Counted are the Python files below ``src`` in which a function is
entered between the beginning and the end of a step, in any thread: with all experts in memory, with at least one that
has to be read, and of a store in four bits. Those that compute a layer's experts, or bring them into memory, are
counted apart, too. C is counted for itself: the files that the native library is built of.
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
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent / "src" / "coterie"
INSIDE = f"{SOURCE}/"
EXPERTS = (str(SOURCE / "integration" / "adapters"), str(SOURCE / "integration" / "quantised.py"))
"""Beginnings of the names of files by which a layer comes to its experts."""


@dataclass
class Files:
    """Names below the package.

    Attributes:
        all: Of everything that is entered.
        experts: Of these, what is entered from where a layer comes to its experts, and in other threads.
    """

    all: set[str] = field(default_factory=set)
    experts: set[str] = field(default_factory=set)


class Crossed:
    """Collects the files while it counts."""

    def __init__(self) -> None:
        self._files: Files | None = None
        self._thread = threading.get_ident()
        # The call by which this thread came to a layer's experts.
        self._experts: FrameType | None = None

    def install(self) -> None:
        """Listens in all threads that begin from now on; in this one, only within a step."""
        threading.setprofile(self._event)

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        files = self._files
        if files is None:
            return
        here = threading.get_ident() == self._thread
        if event == "return" and here and frame is self._experts:
            self._experts = None
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(INSIDE):
            return
        if here and self._experts is None and name.startswith(EXPERTS):
            self._experts = frame
        name = name.removeprefix(INSIDE)
        files.all.add(name)
        if self._experts is not None or not here:
            files.experts.add(name)

    @contextmanager
    def step(self) -> Iterator[Files]:
        """What is entered within the block."""
        self._files = files = Files()
        sys.setprofile(self._event)
        try:
            yield files
        finally:
            sys.setprofile(None)
            self._files = self._experts = None


def steps(crossed: Crossed, model: Any, count: int) -> Iterator[tuple[int, Files]]:
    """Experts read, and files, of one decode step after the other."""
    import torch

    # As many different tokens: nearly every expert is asked for.
    ids = torch.arange(16, 528)[None]
    with torch.inference_mode():
        made = model(ids, use_cache=True)
        for _ in range(count):
            token = made.logits[:, -1:].argmax(-1)
            before = model.coterie.stats().total.misses
            with crossed.step() as files:
                made = model(token, past_key_values=made.past_key_values, use_cache=True)
            yield model.coterie.stats().total.misses - before, files


def measure() -> dict[str, Files]:
    """Kind of step → the files that it crosses: the step with the fewest."""
    crossed = Crossed()
    crossed.install()
    import coterie

    found: dict[str, Files] = {}
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
                own = [files for missed, files in list(steps(crossed, model, 40))[8:] if (missed > 0) == missing]
            if not own:
                raise SystemExit(f"No step is {name}.")
            found[name] = min(own, key=lambda files: len(files.all))
    return found


def main() -> int:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", action="store_true", help="print the files, too")
    parser.add_argument("--json", action="store_true", help="print kind → which files → names as JSON")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = measure()
    if options.json:
        print(
            json.dumps({kind: {name: sorted(of) for name, of in vars(files).items()} for kind, files in found.items()})
        )
        return 0
    for kind, files in found.items():
        print(f"{kind:18} {len(files.all):3} files of Python, {len(files.experts)} of them for a layer's experts (*)")
        if options.names:
            print("".join(f"  {'*' if name in files.experts else ' '} {name}\n" for name in sorted(files.all)), end="")
    sources = list((SOURCE / "native").glob("*.[ch]"))
    print(f"{'native library':18} {len(sources):3} files of C")
    return 0


if __name__ == "__main__":
    sys.exit(main())

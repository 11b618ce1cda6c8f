"""How far long work is: a bar in a terminal, elsewhere a line now and then, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from coterie.cli.console import notes, print_note
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from rich.progress import Progress

    from coterie.curves import CurveProgress
    from coterie.fitting import FitProgress

_PLAIN_PROGRESS_SECONDS = 10.0
_ROOM_FOR_A_BAR = 90
"""Columns from which bytes are shown with a bar."""
_ROOM_FOR_AMOUNTS = 70
"""Columns from which they are shown as amounts, not as a percentage alone."""


@contextmanager
def byte_progress(
    description: str, total: int | None, *, addition: Callable[[], str] | None = None
) -> Iterator[Callable[[int], None]]:
    """Shows how many bytes are done, the speed and the time left, on stderr.

    In a terminal it is one line; elsewhere a line every ten seconds, so that logs stay readable. Units and speed are
    those of the summary that a command prints at its end: binary, and bytes done over the time taken.

    Args:
        description: What is being done.
        total: Bytes in all, or None if not known.
        addition: Says what is to be shown behind the description, anew each time.

    Yields:
        A function to call with the number of bytes done since the last call, from one thread at a time.
    """
    if not sys.stderr.isatty():
        yield _PlainProgress(description, total, amount=format_bytes, addition=addition).advance
        return
    with _bar(*_byte_columns(notes().width)) as progress:
        task = progress.add_task(description, total=total)
        if addition is None:
            yield lambda nbytes: progress.advance(task, nbytes)
        else:
            yield lambda nbytes: progress.update(task, advance=nbytes, description=f"{description}{addition()}")


@contextmanager
def work_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows the share of work that is done and the time left, where amounts of work are estimates that mean nothing.

    Args:
        description: What is being done.
        total: Work in all, in any unit.

    Yields:
        A function to call with the work done since the last call, from one thread at a time.
    """
    if not sys.stderr.isatty():
        yield _PlainProgress(description, total, amount=None).advance
        return
    from rich import progress as bar

    with _bar(_name_column(), bar.BarColumn(), bar.TaskProgressColumn(), bar.TimeRemainingColumn()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda amount: progress.advance(task, amount)


@contextmanager
def count_progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows how many of so many things are done, and the time left: a bar in a terminal, elsewhere nothing.

    Args:
        description: What is being done.
        total: Things in all.

    Yields:
        A function to call when one more is done.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with _counting_bar() as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def layer_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how many layers are done, of how many: a bar in a terminal, elsewhere nothing.

    Args:
        description: What is being done.

    Yields:
        A function to call with both numbers.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with _counting_bar() as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def point_progress(*, quiet: bool) -> Iterator[Callable[[CurveProgress], None] | None]:
    """Shows which point of a curve is being measured and how far it is: a bar in a terminal, else a line for each.

    Args:
        quiet: Show nothing.

    Yields:
        What to tell; None if nothing is shown.
    """
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _point_lines()
        return
    from rich import progress as bar

    columns = (_name_column(), bar.BarColumn(), bar.TaskProgressColumn(), bar.TimeRemainingColumn())
    with _bar(*columns) as shown:
        task = shown.add_task("opening", total=None)

        def tell(found: CurveProgress) -> None:
            label = f"point {min(found.done + 1, found.total)} of {found.total}: {found.setting.label}"
            if found.tokens is None:
                shown.update(task, description=label)
            else:
                shown.update(task, description=label, completed=found.tokens.done, total=found.tokens.total)

        yield tell


def _point_lines() -> Callable[[CurveProgress], None]:
    told: list[CurveProgress] = []

    def tell(found: CurveProgress) -> None:
        if found.tokens is None and (not told or told[-1].done < found.done):
            told[:] = [found]
            print_note(f"{found.done} of {found.total} points: {found.setting.label}")

    return tell


@contextmanager
def fit_progress() -> Iterator[Callable[[FitProgress], None]]:
    """Shows which stage of a fit is under way and how far it is: a bar in a terminal, else a line for each.

    Yields:
        What to tell.
    """
    if not sys.stderr.isatty():
        yield _stage_lines()
        return
    from rich import progress as bar

    columns = (_name_column(), bar.BarColumn(), bar.TaskProgressColumn(), bar.TimeRemainingColumn())
    with _bar(*columns) as shown:
        task = shown.add_task("opening", total=None)
        label = ""

        def tell(found: FitProgress) -> None:
            nonlocal label
            now = _stage_label(found)
            if now != label:
                label = now
                shown.reset(task, description=label, total=found.total)
            shown.update(task, completed=found.done or 0, total=found.total)

        yield tell


def _stage_label(found: FitProgress) -> str:
    what = f": {found.what}" if found.what else ""
    return f"stage {found.number} of {found.stages}, {found.stage}{what}"


def _stage_lines() -> Callable[[FitProgress], None]:
    told: set[str] = set()
    last = time.monotonic()

    def tell(found: FitProgress) -> None:
        nonlocal last
        label, now = _stage_label(found), time.monotonic()
        share = f", {found.done / found.total:.0%}" if found.done is not None and found.total else ""
        if label not in told or now - last >= _PLAIN_PROGRESS_SECONDS:
            told.add(label)
            last = now
            print_note(f"{label}{share}")

    return tell


def _bar(*columns: Any, transient: bool = False) -> Progress:
    # Imported late: `coterie --help` needs no bar.
    from rich.progress import Progress

    return Progress(*columns, console=notes(), transient=transient)


def _counting_bar() -> Progress:
    from rich import progress as bar

    columns = (_name_column(), bar.BarColumn(), bar.MofNCompleteColumn(), bar.TimeRemainingColumn())
    return _bar(*columns, transient=True)


def _name_column() -> Any:
    from rich.progress import TextColumn

    return TextColumn("{task.description}", markup=False)


def _byte_columns(width: int) -> list[Any]:
    """What fits on one line of so many columns."""
    from rich import progress as bar
    from rich.text import Text

    class Amount(bar.ProgressColumn):
        """Bytes done, of all."""

        def render(self, task: bar.Task) -> Text:
            done = format_bytes(int(task.completed))
            return Text(done if task.total is None else f"{done} of {format_bytes(int(task.total))}", no_wrap=True)

    class Speed(bar.ProgressColumn):
        """Bytes done over the time taken."""

        def render(self, task: bar.Task) -> Text:
            elapsed = task.finished_time or task.elapsed
            return Text(f"{format_bytes(int(task.completed / elapsed))}/s" if elapsed else "", no_wrap=True)

    columns: list[Any] = [_name_column()]
    if width >= _ROOM_FOR_A_BAR:
        columns.append(bar.BarColumn(bar_width=None))
    columns.append(Amount() if width >= _ROOM_FOR_AMOUNTS else bar.TaskProgressColumn())
    return [*columns, Speed(), bar.TimeRemainingColumn()]


class _PlainProgress:
    """Progress as occasional lines of text."""

    def __init__(
        self,
        description: str,
        total: int | None,
        *,
        amount: Callable[[int], str] | None,
        every_s: float = _PLAIN_PROGRESS_SECONDS,
        addition: Callable[[], str] | None = None,
    ) -> None:
        self._addition = addition
        self._description = description
        self._total = total
        self._amount = amount
        self._every_s = every_s
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, amount: int) -> None:
        """Adds to what is done and prints a line if the last one is old enough."""
        self._done += amount
        now = time.monotonic()
        if now - self._last >= self._every_s:
            self._last = now
            print_note(self.line(now - self._start))

    def line(self, elapsed_s: float) -> str:
        """The line after this many seconds."""
        speed = self._done / elapsed_s if elapsed_s > 0 else 0.0
        text = f"{self._description}{self._addition() if self._addition else ''}: {self._figures(speed)}"
        if self._total is not None and speed > 0:
            text += f", {max(0, self._total - self._done) / speed:.0f} s left"
        return text

    def _figures(self, speed: float) -> str:
        if self._amount is None:
            return f"{self._done / self._total:.0%}" if self._total else "0%"
        done = self._amount(self._done)
        if self._total is not None:
            done += f" of {self._amount(self._total)}"
        return f"{done}, {self._amount(int(speed))}/s"

"""Where commands print: results on stdout, everything else (progress, notes, errors) on stderr."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coterie.spec import format_bytes

_PLAIN_PROGRESS_SECONDS = 10.0
_PARAMETER = re.compile(r"\b(memory|expert_memory|max_context|missing|source|eviction)=(['\"])([^'\"]*)\2")
"""Parameters of the library as its messages write them, which are options of the same name here."""
_PIPED_WIDTH = 160
"""Columns for tables that are not shown in a terminal: wide enough that paths are not folded."""


def results() -> Console:
    """The console for what the user asked for. Made anew so that it follows a redirected ``sys.stdout``."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH, soft_wrap=True)


def notes() -> Console:
    """The console for progress, warnings and errors."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Prints a value as indented JSON: dataclasses as objects, paths as texts, tuples and sets as lists."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=_as_json) + "\n")


def print_table(table: Table) -> None:
    """Prints a table of results."""
    Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


def plain_table(*headings: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table in the one style that all commands use.

    Args:
        *headings: Column headings.
        right: Those of them whose column is aligned to the right: numbers and sizes.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        is_right = heading in right
        table.add_column(heading, justify="right" if is_right else "left", no_wrap=is_right, overflow="fold")
    return table


def print_note(text: str) -> None:
    """Prints a remark on stderr."""
    notes().print(text, markup=False)


def print_warning(text: str) -> None:
    """Prints a warning on stderr."""
    notes().print(f"Warning: {text}", style="yellow", markup=False)


def print_error(text: str) -> None:
    """Prints an error on stderr, with parameters of the library as the options they are here."""
    notes().print(f"Error: {as_options(text)}", style="bold red", markup=False)


@contextmanager
def library_remarks() -> Iterator[None]:
    """Inside, what the library logs for whoever waits (that the Hub asks to wait, for one) is printed on stderr."""
    log, handler = logging.getLogger("coterie"), _RemarkHandler(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _RemarkHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_note(record.getMessage())


def as_options(text: str) -> str:
    """A message of the library for the command line: ``missing='mask'`` becomes ``--missing mask``."""
    return _PARAMETER.sub(lambda found: f"--{found[1].replace('_', '-')} {found[3]}", text)


@contextmanager
def byte_progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows how many bytes are done, the speed and the time left, on stderr.

    In a terminal it is a bar; elsewhere a line every ten seconds, so that logs stay readable.

    Args:
        description: What is being done.
        total: Bytes in all, or None if not known.

    Yields:
        A function to call with the number of bytes done since the last call, from one thread at a time.
    """
    if not sys.stderr.isatty():
        yield _PlainProgress(description, total).advance
        return
    # Imported late: `coterie --help` needs no bar.
    from rich import progress as bar

    columns = (
        bar.TextColumn("{task.description}"),
        bar.BarColumn(),
        bar.TaskProgressColumn(),
        bar.DownloadColumn(binary_units=True),
        bar.TransferSpeedColumn(),
        bar.TimeRemainingColumn(),
    )
    with bar.Progress(*columns, console=notes()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda nbytes: progress.advance(task, nbytes)


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
    from rich import progress as bar

    columns = (
        bar.TextColumn("{task.description}"),
        bar.BarColumn(),
        bar.MofNCompleteColumn(),
        bar.TimeRemainingColumn(),
    )
    with bar.Progress(*columns, console=notes(), transient=True) as progress:
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
    from rich import progress as bar

    columns = (
        bar.TextColumn("{task.description}"),
        bar.BarColumn(),
        bar.MofNCompleteColumn(),
        bar.TimeRemainingColumn(),
    )
    with bar.Progress(*columns, console=notes(), transient=True) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _PlainProgress:
    """Progress as occasional lines of text."""

    def __init__(self, description: str, total: int | None, *, every_s: float = _PLAIN_PROGRESS_SECONDS) -> None:
        self._description = description
        self._total = total
        self._every_s = every_s
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, nbytes: int) -> None:
        """Adds to the bytes done and prints a line if the last one is old enough."""
        self._done += nbytes
        now = time.monotonic()
        if now - self._last >= self._every_s:
            self._last = now
            print_note(self.line(now - self._start))

    def line(self, elapsed_s: float) -> str:
        """The line after this many seconds."""
        speed = self._done / elapsed_s if elapsed_s > 0 else 0.0
        text = f"{self._description}: {format_bytes(self._done)}"
        if self._total is not None:
            text += f" of {format_bytes(self._total)}"
        text += f", {format_bytes(int(speed))}/s"
        if self._total is not None and speed > 0:
            text += f", {max(0, self._total - self._done) / speed:.0f} s left"
        return text


def _as_json(value: object) -> object:
    """What ``json`` cannot write by itself."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")

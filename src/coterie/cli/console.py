"""Where commands print: results on stdout, everything else (progress, notes, errors) on stderr."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from coterie.cli.terminal import Terminal, json_text

_PARAMETER = re.compile(r"\b(memory|expert_memory|max_context|missing|source|eviction|max_rate)=(['\"])([^'\"]*)\2")
"""Parameters of the library as its messages write them, which are options of the same name here."""
_NAME = re.compile(
    r"(?<![\w/.'\"=-])(max_context|expert_memory|max_new_tokens|temperature(?= must)|top_p|top_k|min_p"
    r"|repetition_penalty|experts_per_token|drop_cold|max_rate)(?![\w/.'\"=-]| in | = )"
)
"""The same without a value; what stands in a file keeps its name."""
_OPTIONS = {"repetition_penalty": "--repeat-penalty"}
_PIPED_WIDTH = 160
"""Columns for tables that are not shown in a terminal: wide enough that paths are not folded."""


def results() -> Terminal:
    """The console for what the user asked for. Made anew so that it follows a redirected ``sys.stdout``."""
    return Terminal(width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def notes() -> Terminal:
    """The console for progress, warnings and errors."""
    return Terminal(stderr=True)


def print_json(value: object) -> None:
    """Prints a value as indented JSON: dataclasses as objects, paths as texts, tuples and sets as lists."""
    print_json_lines([json.dumps(value, indent=2, ensure_ascii=False, default=_as_json)])


def print_json_lines(lines: Iterable[str]) -> None:
    """Prints what is JSON already, each text on lines of its own."""
    sys.stdout.writelines(f"{json_text(line, sys.stdout.encoding)}\n" for line in lines)


def print_table(table: Table) -> None:
    """Prints a table of results."""
    results().print(table)


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


def facts_table() -> Table:
    """An empty table of names and values: no headings, names in bold."""
    table = plain_table("", "")
    table.show_header = False
    table.columns[0].style = "bold"
    return table


def print_note(text: str) -> None:
    """Prints a remark on stderr."""
    notes().print(text)


def print_warning(text: str) -> None:
    """Prints a warning on stderr."""
    notes().print(f"Warning: {text}", style="yellow")


def print_error(text: str) -> None:
    """Prints an error on stderr, with parameters of the library as the options they are here."""
    notes().print(f"Error: {as_options(text)}", style="bold red")


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
    text = _PARAMETER.sub(lambda found: f"--{found[1].replace('_', '-')} {found[3]}", text)
    return _NAME.sub(lambda found: _OPTIONS.get(found[1], f"--{found[1].replace('_', '-')}"), text)


def _as_json(value: object) -> object:
    """What ``json`` cannot write by itself."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")

"""What an evaluation has finished, in a file, so that an interrupted one goes on where it was.

One JSON object a line: first what is evaluated, then a line per window with its scores, or per prompt with what it was
continued with. Numbers are written so that they are read back as the same ones: what a resumed evaluation reports is
what an uninterrupted one would.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from coterie.errors import InputError, UsageError
from coterie.evaluate.headers import differing
from coterie.evaluate.reads import Reads
from coterie.evaluate.scores import TokenScores
from coterie.files.json_text import JsonLimits, parse_json

JOURNAL_SCHEMA_VERSION = 2
_DTYPES = {
    "loss": float,
    "correct": bool,
    "full_loss": float,
    "full_correct": bool,
    "kld": float,
    "same_top": bool,
    "identical": bool,
}
_READS = ("reads", "full_reads")

_LINE = JsonLimits(nbytes=64 << 20, depth=8, values=4_000_000)
"""A window's scores are some numbers a token."""


class Finished(NamedTuple):
    """A window that is done.

    Attributes:
        scores: Of its predictions.
        reads: What the model read for it; None where tokens were computed together.
        full_reads: What the full model read.
    """

    scores: TokenScores
    reads: Reads | None = None
    full_reads: Reads | None = None


class Continued(NamedTuple):
    """A prompt that was continued.

    Attributes:
        ids: The model's tokens.
        full_ids: The full model's; None without one.
    """

    ids: tuple[int, ...]
    full_ids: tuple[int, ...] | None = None


Key = tuple[int, int] | str
"""Of a window, the numbers of its text and of itself; of a prompt, a digest of what it is."""


class Journal:
    """The file, open for appending; a context manager.

    Attributes:
        done: What was finished when it was opened.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any]) -> None:
        """Opens or begins a journal.

        Args:
            path: The file.
            header: What is evaluated and how: texts and numbers only, equal if and only if scores are comparable.

        Raises:
            UsageError: If the file is a journal of something else, or no journal.
            InputError: If it cannot be opened.
        """
        self.path = Path(path)
        self.done: dict[Key, Finished | Continued] = {}
        self._header = {"schema_version": JOURNAL_SCHEMA_VERSION, **json.loads(json.dumps(header))}
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"{self.path} is not a regular file.", advice="Name a new file.", path=self.path)
        try:
            self._file: IO[bytes] = open(self.path, "a+b")  # noqa: SIM115 - closed by `close`
        except OSError as error:
            why = error.strerror or "it is no regular file"
            raise InputError(f"{self.path} cannot be written: {why}.", path=self.path) from error
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise InputError(f"{self.path} is no regular file.", advice="Use another.", path=self.path)
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. Harmless when repeated."""
        self._file.close()

    def append(self, key: Key, finished: Finished | Continued) -> None:
        """Adds a window or a prompt; it is on the disk when this returns."""
        if isinstance(finished, Continued):
            self._write({"prompt": key} | finished._asdict())
            return
        columns = {name: getattr(finished.scores, name) for name in _DTYPES}
        reads = {name: getattr(finished, name) for name in _READS}
        self._write(
            {"text": key[0], "window": key[1]}
            | {name: None if column is None else column.tolist() for name, column in columns.items()}
            | {name: None if counted is None else asdict(counted) for name, counted in reads.items()}
        )

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        try:
            records = [parse_json(line, _LINE) for line in lines]
            found = dict(records[0]) if records else {}
            self.done = dict(_finished(record) for record in records[1:])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise self._foreign() from error
        if not records:
            if content and not self._is_my_beginning(content):
                raise self._foreign()
            self._file.truncate(0)
            self._write(self._header)
            return
        if found != self._header:
            names = differing(found, self._header)
            raise UsageError(
                f"{self.path} belongs to another evaluation: {', '.join(names)} differ.",
                advice="Use another file, or remove this one to begin anew.",
                path=self.path,
                differing=names,
            )
        # A kill may have left half a line.
        self._file.truncate(whole)

    def _is_my_beginning(self, content: bytes) -> bool:
        return json.dumps(self._header).encode().startswith(content)

    def _foreign(self) -> UsageError:
        return UsageError(
            f"{self.path} is no record of an evaluation.",
            advice="Use another file; nothing was changed.",
            path=self.path,
        )


def read_windows(path: str | Path) -> tuple[dict[str, Any], dict[tuple[int, int], TokenScores]]:
    """What a finished evaluation has kept: of what it is, and the scores of each window, by text and window.

    Raises:
        InputError: If it cannot be read.
        UsageError: If it is no journal.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.", path=path) from error
    try:
        header, *records = [parse_json(line, _LINE) for line in lines]
        found = [_finished(record) for record in records]
        return dict(header), {
            key: one.scores for key, one in found if isinstance(key, tuple) and isinstance(one, Finished)
        }
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UsageError(f"{path} is no record of an evaluation.", path=path) from error


def _finished(record: Mapping[str, Any]) -> tuple[Key, Finished | Continued]:
    if "prompt" in record:
        full_ids = record["full_ids"]
        return str(record["prompt"]), Continued(_ids(record["ids"]), None if full_ids is None else _ids(full_ids))
    reads = {name: None if record[name] is None else Reads(**record[name]) for name in _READS}
    return (record["text"], record["window"]), Finished(_scores(record), **reads)


def _ids(tokens: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(token) for token in tokens)


def _scores(record: Mapping[str, Any]) -> TokenScores:
    columns: dict[str, Any] = {
        name: None if record[name] is None else np.array(record[name], dtype=dtype) for name, dtype in _DTYPES.items()
    }
    sizes = {column.shape for column in columns.values() if column is not None}
    if len(sizes) != 1 or len(sizes.pop()) != 1:
        raise ValueError("scores are of the same tokens, one number each")
    return TokenScores(**columns)

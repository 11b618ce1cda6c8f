"""A directory beside the output for as long as a fit is not finished: what each stage has made, and what it found.

A stage that is finished is written down with what it was made from: the settings that it depends on, and all of those
before it. The same call goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from coterie.errors import InputError, OutputError, UsageError
from coterie.files.json_text import JsonLimits, read_json_object
from coterie.files.plain_values import from_plain
from coterie.files.replacing import replacing
from coterie.store.disk import Disk
from coterie.store.lock import WriterLock

T = TypeVar("T")

_RECORD = "fit.json"
_SCHEMA_VERSION = 1
FACTS_LIMITS = JsonLimits(nbytes=64 << 20, values=4_000_000)
"""Of what a fit has found."""

ARTIFACTS: Mapping[str, tuple[str, ...]] = {
    "profile": ("profile.db", "profile.db-wal", "profile.db-shm"),
    "prune": ("pruned",),
    "profile-pruned": ("pruned.db", "pruned.db-wal", "pruned.db-shm"),
    "plan": (),
    "store": ("store",),
    "verify": (),
    "uniform": ("uniform",),
    "evaluate": ("logits", "store.windows.jsonl", "uniform.windows.jsonl", "pruned.windows.jsonl"),
    "speed": (),
}
"""Stage → what it makes in the directory, in the order of the stages."""

TEXTS = "texts"

DEPENDS: Mapping[str, tuple[str, ...]] = {
    "profile": ("model", "component", "profile", "calibration", "calibration tokens", "texts apart"),
    "prune": ("pruning",),
    "profile-pruned": (),
    "plan": ("memory", "context", "bits", "domains", "dense scheme", "speed"),
    "store": ("modalities",),
    "verify": (),
    "uniform": ("compare",),
    "evaluate": ("texts", "questions", "limit", "full model"),
    "speed": (),
}
"""Stage → the settings that it depends on, beside those of all stages before it."""


def work_path(store: str | Path) -> Path:
    """The directory of a fit whose output is ``store``."""
    path = Path(store).expanduser().absolute()
    return path.with_name(f"{path.name}.work")


class WorkFolder:
    """The directory, and the record of finished stages.

    Args:
        path: The directory.
        settings: What decides the result.
        restart: Whether stages of another request are discarded.

    Attributes:
        path: The directory.
        is_new: Whether nothing of a fit was there.

    Raises:
        UsageError: If it has the work of another request, or is a directory of something else.
        InputError: If the record cannot be read.
        OutputError: If it cannot be made.
    """

    def __init__(self, path: Path, settings: Mapping[str, str], *, restart: bool = False) -> None:
        self.path = path
        self._settings = dict(settings)
        self._stages: dict[str, dict[str, Any]] = {}
        record = path / _RECORD
        self.is_new = not record.exists()
        if self.is_new:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UsageError(
                    f"{path} is in the way: unfinished work goes there, and it has something else.",
                    advice="Name another output, or move it away.",
                    path=path,
                )
        else:
            self._read(record, restart=restart)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path} cannot be made: {error.strerror or error}.", path=path) from error
        self._write()

    @staticmethod
    def is_of(path: Path, settings: Mapping[str, str]) -> bool:
        """Whether a directory has the work of a request."""
        return (path / _RECORD).exists() and _parsed(path / _RECORD)[0] == dict(settings)

    @staticmethod
    def finished_in(path: Path, settings: Mapping[str, str]) -> set[str]:
        """The stages in a directory that a request would not do again."""
        if not (path / _RECORD).exists():
            return set()
        before, stages = _parsed(path / _RECORD)
        found: set[str] = set()
        for name in ARTIFACTS:
            if not _is_same(name, before, settings):
                break
            if name in stages:
                found.add(name)
        return found

    def _read(self, record: Path, *, restart: bool) -> None:
        before, stages = _parsed(record)
        differing = [name for name, value in self._settings.items() if before.get(name) != value]
        if differing and not restart:
            raise UsageError(
                f"{self.path} has the unfinished work of another request: {', '.join(differing)} differ.",
                advice="Give the same command again, name another output, or add --restart, which keeps the stages "
                "that are the same.",
                path=self.path,
                differing=differing,
            )
        self._stages = {name: one for name, one in stages.items() if name in ARTIFACTS}
        if differing:
            kept = True
            for name in ARTIFACTS:
                kept = kept and _is_same(name, before, self._settings)
                if not kept:
                    self.forget(name)

    def made_from(self, stage: str) -> str:
        """Hex digits that differ if what the stage is made from does."""
        names = [name for one in _until(stage) for name in DEPENDS[one]]
        found = {name: self._settings.get(name) for name in names}
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    def finished(self, stage: str, kind: type[T]) -> T | None:
        """What a finished stage has found; None if it has to be done, or done again."""
        one = self._stages.get(stage)
        if one is None or one["made_from"] != self.made_from(stage):
            return None
        try:
            found: T = from_plain(kind, one["facts"])
        except ValueError:
            return None
        return found

    def finish(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Writes down what a stage has found; it is on the disk when this returns."""
        self._stages[stage] = {"made_from": self.made_from(stage), "facts": dict(facts)}
        self._write()

    def forget(self, stage: str) -> None:
        """Removes what a stage has made."""
        self._stages.pop(stage, None)
        self.remove(ARTIFACTS[stage])

    def remove(self, names: Iterable[str]) -> None:
        """Removes files and directories of these names."""
        for name in names:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all that a fit makes, and the directory if nothing else is in it."""
        self.remove([*(name for names in ARTIFACTS.values() for name in names), TEXTS, _RECORD])
        with suppress(OSError):
            self.path.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes away while the block runs.

        Raises:
            StoreBusyError: If another one works here.
        """
        lock = WriterLock(Disk(self.path))
        try:
            yield
        finally:
            lock.release()

    def _write(self) -> None:
        found = {"schema_version": _SCHEMA_VERSION, "settings": self._settings, "stages": self._stages}
        with replacing(self.path / _RECORD) as partial:
            partial.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _parsed(record: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings and the finished stages that a record has."""
    found = read_json_object(
        record, limits=FACTS_LIMITS, error=InputError, advice=f"Remove {record.parent} to begin anew."
    )
    settings, stages = found.get("settings"), found.get("stages")
    if (
        found.get("schema_version") != _SCHEMA_VERSION
        or not isinstance(settings, dict)
        or not isinstance(stages, dict)
        or not all(isinstance(one, dict) and {"made_from", "facts"} <= one.keys() for one in stages.values())
    ):
        raise UsageError(
            f"{record} is no record of a fit that this version knows.",
            advice=f"Name another output, or remove {record.parent} to begin anew.",
            path=record,
        )
    return settings, stages


def _is_same(stage: str, before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether two requests have the same settings of a stage's own."""
    return all(before.get(name) == now.get(name) for name in DEPENDS[stage])


def _until(stage: str) -> Sequence[str]:
    names = list(ARTIFACTS)
    return names[: names.index(stage) + 1]

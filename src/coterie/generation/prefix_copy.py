"""A copy on disk of what prompts begin with, for the time after a restart, and for what memory has no room for.

It is written in a thread of its own, after a piece has been computed, and read when a prompt begins with a piece that
is not in memory. Whatever is wrong with the disk costs the copy, and never a request.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.engine.bit_identity import bit_identity
from coterie.errors import CoterieError
from coterie.generation.prefix_files import DamagedPieceError, PieceFacts
from coterie.generation.prefix_folder import PrefixFolder
from coterie.generation.prefix_tree import Node
from coterie.hf.cache_states import Stretch
from coterie.spec import PREFIX_DIR_NBYTES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PAUSES_S = (60.0, 3600.0)
"""After a write that failed none is tried for so long; twice as long after each further one, up to the second."""
_MOST_WAITING = 4096
"""Pieces that wait to be written. They take no memory: what has left it meanwhile is not written."""
_MOST_SALTS = 4096
_LINGER_S = 5.0
_FRESH_S = 60.0
"""A piece that was of use is not noted again so soon."""

_log = logging.getLogger("coterie.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyCounts:
    """What became of a copy since it was opened.

    Attributes:
        read: Pieces that were read.
        bytes_read: Their bytes.
        written: Pieces that were written.
        bytes_written: Their bytes.
        skipped: Pieces that were not: there was no room, or writing pauses after a failure.
        failed: Writes and reads that failed.
    """

    read: int = 0
    bytes_read: int = 0
    written: int = 0
    bytes_written: int = 0
    skipped: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the copy a prompt has come to.

    Attributes:
        root: Digest of the model and of whose prompt it is.
        name: Digest of all pieces so far; that of the root before the first.
    """

    root: bytes
    name: bytes

    @property
    def after(self) -> str:
        """The name of the last piece; empty before the first."""
        return "" if self.name == self.root else self.name.hex()


class PrefixCopy:
    """The copy for one model. Several threads may use it.

    Args:
        folder: Where it is.
        model: Digest of all that decides what the model keeps of tokens.
    """

    def __init__(self, folder: PrefixFolder, model: bytes) -> None:
        self._folder = folder
        self._model = model
        self._roots: dict[str, bytes] = {}
        self._counts = CopyCounts()
        self._waiting: deque[tuple[Place, Place, Node[Any], tuple[int, int], float]] = deque(maxlen=_MOST_WAITING)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._busy = False
        self._paused_until = 0.0
        self._pause_s = _PAUSES_S[0]
        self._told: set[str] = set()
        self._noted: dict[bytes, float] = {}
        self._tell_damage()

    @classmethod
    def of(cls, model: PreTrainedModel, path: str | Path, limit: int = PREFIX_DIR_NBYTES) -> PrefixCopy:
        """That of a model in a directory.

        Raises:
            CoterieError: If the directory cannot be used, as :class:`~coterie.generation.prefix_folder.PrefixFolder`.
        """
        return cls(PrefixFolder(path, limit), bit_identity(model))

    @property
    def counts(self) -> CopyCounts:
        """What became of it since it was opened."""
        return self._counts

    @property
    def damaged(self) -> int:
        """Files that were not what was written, since it was opened."""
        return self._folder.damaged

    @property
    def nbytes(self) -> int:
        """Bytes that the directory's files take, as far as is known."""
        return self._folder.nbytes

    @property
    def limit(self) -> int:
        """Bytes that they may take."""
        return self._folder.limit

    @property
    def paused(self) -> bool:
        """Whether nothing is written for now, after a failure."""
        return time.monotonic() < self._paused_until

    def begin(self, salt: str) -> Place:
        """Where all prompts under a salt begin. The first time it takes a while: a salt must not be guessed."""
        root = self._roots.get(salt)
        if root is None:
            whose = self._folder.slow_digest(salt) if salt else b""
            root = self._folder.digest(b"root", self._model, whose)
            with self._changed:
                if len(self._roots) >= _MOST_SALTS:
                    self._roots.clear()
                self._roots[salt] = root
        return Place(root, root)

    def after(self, place: Place, key: bytes) -> Place:
        """Where a prompt is after one more piece."""
        return Place(place.root, self._folder.digest(b"piece", place.name, key))

    def read(self, place: Place, begin: int, end: int) -> tuple[Stretch, float] | None:
        """The piece that ends at a place, and how long it took to compute; None if there is none that is sound."""
        name = place.name.hex()
        try:
            found = self._folder.read(name, model=self._model.hex(), begin=begin, end=end)
        except DamagedPieceError:
            self._tell_damage()
            return None
        except OSError as error:
            self._count(failed=1)
            self._tell("read", "A beginning of a prompt cannot be read from %s (%s); it is computed.", error)
            return None
        if found is None:
            return None
        facts, piece = found
        self._count(read=1, bytes_read=piece.nbytes)
        return piece, facts.seconds

    def keep(self, before: Place, place: Place, node: Node[Any], begin: int, end: int, seconds: float) -> None:
        """Has a piece written that is in memory, if it is not there; else notes that it was of use."""
        if self.paused:
            self._count(skipped=1)
            return
        now = time.monotonic()
        with self._changed:
            if self._closed or now < self._noted.get(place.name, 0.0):
                return
            if len(self._noted) >= _MOST_WAITING:
                self._noted.clear()
            self._noted[place.name] = now + _FRESH_S
            if len(self._waiting) == _MOST_WAITING:
                self._count(skipped=1)
            self._waiting.append((before, place, node, (begin, end), seconds))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="coterie-prefix-copy", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def forget(self, salt: str | None = None) -> None:
        """Removes all that is kept under a salt, for this model; everything, without one, for every model.

        Raises:
            CoterieError: If it cannot be removed.
        """
        with self._changed:
            self._waiting.clear()
            self._noted.clear()
        self._folder.forget(None if salt is None else self.begin(salt).root.hex())

    def flush(self, seconds: float | None = None) -> bool:
        """Waits until nothing is left to be written; returns whether that came to be within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def close(self) -> None:
        """Ends the thread, soon: what is not written then is computed another time. Harmless when repeated."""
        self.flush(_LINGER_S)
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or bool(self._waiting))
                if self._closed:
                    return
                before, place, node, stretch, seconds = self._waiting.popleft()
                self._busy = True
            try:
                self._write(before, place, node, stretch, seconds)
            except Exception as error:  # a thread that ends would leave everything that follows unwritten
                self._fail(error)
            del node

    def _write(self, before: Place, place: Place, node: Node[Any], stretch: tuple[int, int], seconds: float) -> None:
        name, piece = place.name.hex(), node.kept
        if self._folder.use(name):
            return
        if not isinstance(piece, Stretch) or self.paused:
            self._skip(place)
            return
        facts = PieceFacts(
            name=name, after=before.after, root=place.root.hex(), model=self._model.hex(), begin=stretch[0],
            end=stretch[1], seconds=seconds,
        )  # fmt: skip
        nbytes = self._folder.write(facts, piece)
        self._tell_damage()
        self._pause_s = _PAUSES_S[0]
        if nbytes:
            self._count(written=1, bytes_written=nbytes)
        else:
            self._skip(place)

    def _skip(self, place: Place) -> None:
        """A piece was not written; the next time that it is of use, it may be."""
        with self._changed:
            self._noted.pop(place.name, None)
            self._count(skipped=1)

    def _fail(self, error: Exception) -> None:
        """A write failed; none is tried for a while, and what waits is not written."""
        self._count(failed=1)
        with self._changed:
            self._count(skipped=len(self._waiting))
            self._waiting.clear()
            self._noted.clear()
        self._paused_until = time.monotonic() + self._pause_s
        _log.warning(
            "Beginnings of prompts are not copied to %s for %g s: %s",
            self._folder.path,
            self._pause_s,
            error.message if isinstance(error, CoterieError) else f"{type(error).__name__}: {error}",
        )
        self._pause_s = min(2 * self._pause_s, _PAUSES_S[1])

    def _tell_damage(self) -> None:
        if self._folder.damaged:
            self._tell(
                "damage", "What was kept of a prompt in %s is not what was written, and was removed (%s so far).",
                self._folder.damaged,
            )  # fmt: skip

    def _tell(self, what: str, message: str, fact: object) -> None:
        """Warns, once of each trouble."""
        if what not in self._told:
            self._told.add(what)
            _log.warning(message, self._folder.path, fact)

    def _count(self, **more: int) -> None:
        with self._changed:
            self._counts = replace(
                self._counts, **{name: getattr(self._counts, name) + number for name, number in more.items()}
            )

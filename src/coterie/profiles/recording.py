"""A recording run: counters on the model's thread, the database on another."""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt
import xxhash

from coterie.errors import ProfileError, ProfileIdentityError
from coterie.profiles.accumulator import DEFAULT_VOCABULARY, Accumulator
from coterie.profiles.database import ProfileDatabase
from coterie.profiles.facts import BankShape, Mark, RunFacts, SegmentFacts, Vocabulary, kept_text
from coterie.spec import BankKey

SEGMENT_TOKENS = 1024
"""Tokens after which a segment ends at the next boundary: the fewer, the more samples and the more bytes."""
_WAITING = 4
"""Segments that may wait for the database; while so many do, the segment in work goes on."""
_VOCABULARY_EVERY = 8
"""Segments between writes of the token counts, which are larger than a segment."""

_PAUSE_S = 1.0
"""Between tries while as many segments as may wait do so."""

_ROOM_S = 0.01
"""Between looks for room for one more."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Parcel:
    """What the writer gets: a segment, the inputs that it brings forward, and now and then the tokens."""

    segment: SegmentFacts | None
    marks: tuple[Mark, ...]
    vocabulary: Vocabulary | None


class Recording:
    """Counts a run into a profile. A context manager.

    The model's thread only ever adds to counters; finished segments are written by a thread of their own, in one
    transaction each. While the database is slow or fails, up to eight segments wait, and then the one in work grows
    instead: memory stays bounded and nothing is dropped. A crash loses what was not yet written: the segment in work,
    and those that wait, if any do. Of the counts of tokens it loses those of up to eight segments.

    Segments end at boundaries that the caller names, so that a document is not cut where that can be helped, and a
    resumed run counts nothing twice: :meth:`mark` between inputs, :meth:`boundary` elsewhere.

    Args:
        database: Where to. It must stay open, and is not closed.
        run: What is recorded. If it is in the database, the run goes on where it was: its banks and model must be the
            same, and no other process may be recording it.
        segment_tokens: Tokens after which a segment ends.
        vocabulary: Tokens kept per expert; 0 counts no token ids.
        pairs: Whether pairs of experts are counted, where there are not too many of them.

    Attributes:
        run: That given.
        database: That given.

    Raises:
        ProfileIdentityError: If the run is there as one of another model.
        ProfileWriteError: If the database cannot be written.
    """

    def __init__(
        self,
        database: ProfileDatabase,
        run: RunFacts,
        *,
        segment_tokens: int = SEGMENT_TOKENS,
        vocabulary: int = DEFAULT_VOCABULARY,
        pairs: bool = True,
    ) -> None:
        self.run = run
        self.database = database
        self._segment_tokens = segment_tokens
        self._accumulator = Accumulator(run.banks, vocabulary=vocabulary, pairs=pairs and run.has_pairs)
        self._has_vocabulary = vocabulary > 0
        database.add_run(run)
        numbers = database.digests(run.uuid)
        self._number = max(numbers, default=-1) + 1
        self._marks = database.marks(run.uuid)
        if numbers and self._has_vocabulary:
            self._accumulator.load(database.vocabulary(run.uuid))
        self._fresh_marks: dict[str, Mark] = {}
        self._since_vocabulary = 0
        self._queue: queue.Queue[_Parcel | None] = queue.Queue(_WAITING)
        self._failed: list[_Parcel] = []
        self._error: ProfileError | None = None
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write_all, name="coterie-profile-writer", daemon=True)
        self._writer.start()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except ProfileError:
            # What went wrong in the block matters more.
            if error is None:
                raise

    @property
    def banks(self) -> tuple[BankShape, ...]:
        """The banks that are counted."""
        return self.run.banks

    def group(self, modality: str, domain: str, phase: str) -> int:
        """The number of a group of tokens, for :meth:`add`; errors as of :meth:`Accumulator.group`."""
        return self._accumulator.group(modality, domain, phase)

    def add(
        self,
        bank: BankKey,
        expert_ids: npt.NDArray[np.uint16],
        weights: npt.NDArray[np.float32],
        contributions: npt.NDArray[np.float32] | None,
        groups: npt.NDArray[np.uint8] | int,
        token_ids: npt.NDArray[np.integer] | int | None = None,
    ) -> None:
        """Counts T tokens that passed a bank's router; arguments as of :meth:`Accumulator.add`."""
        self._accumulator.add(bank, expert_ids, weights, contributions, groups, token_ids)

    def progress(self, name: str) -> Mark:
        """How far an input of this name has been counted, by this recording or by those before it."""
        key = mark_key(name)
        return self._fresh_marks.get(key) or self._marks.get(key) or Mark(key, 0, False)

    def mark(self, name: str, position: int, *, done: bool = False, ends_segment: bool = False) -> None:
        """Says that an input has been counted up to a position, and all tokens added so far belong before it.

        Ends the segment if it is long enough. The mark is written in one transaction with the counters that it speaks
        of, so that a run that was killed goes on at the right place. Only a fingerprint of the name is kept.

        Args:
            name: Of the input, such as its path.
            position: In units of the caller's choice, such as windows of tokens.
            done: Whether nothing is left of it.
            ends_segment: Whether the segment is to end here however short it is.
        """
        key = mark_key(name)
        self._fresh_marks[key] = Mark(key, position, done)
        self._end_segment_if(1 if ends_segment else self._segment_tokens)

    def boundary(self) -> None:
        """Says that all banks have seen the same tokens and a segment may end here: between steps of generation."""
        if not self._fresh_marks:
            self._end_segment_if(self._segment_tokens)

    @property
    def tokens(self) -> int:
        """Tokens counted in the segment in work."""
        return self._accumulator.tokens

    @property
    def nbytes(self) -> int:
        """Bytes of the counters in work. Each segment that waits for the database takes less."""
        return self._accumulator.nbytes

    @property
    def error(self) -> ProfileError | None:
        """What the database said when it last could not be written; None if all is well. Writing is tried again."""
        return self._error

    def _end_segment_if(self, tokens: int) -> None:
        if self._accumulator.tokens < tokens or self._queue.full():
            return
        self._queue.put_nowait(self._parcel(final=False))

    def _parcel(self, *, final: bool) -> _Parcel:
        segment = None
        if self._accumulator.tokens:
            segment = self._accumulator.take(self._number)
            self._number += 1
            self._since_vocabulary += 1
        vocabulary = None
        if self._has_vocabulary and self._since_vocabulary >= (1 if final else _VOCABULARY_EVERY):
            vocabulary = self._accumulator.vocabulary(self._number)
            self._since_vocabulary = 0
        marks = tuple(self._fresh_marks.values())
        self._marks |= self._fresh_marks
        self._fresh_marks = {}
        return _Parcel(segment, marks, vocabulary)

    def close(self) -> None:
        """Writes what is left and ends the recording; waits for the database. Harmless when repeated.

        Raises:
            ProfileError: If something could not be written, after another try; says how many tokens are lost.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._put(self._parcel(final=True))
        self._put(None)
        self._writer.join()
        error = self._error
        if self._failed and error is not None:
            lost = sum(0 if parcel.segment is None else parcel.segment.tokens for parcel in self._failed)
            raise type(error)(
                f"{error.message} {lost} tokens of run {self.run.uuid} were counted and not written.",
                advice=error.advice,
                **error.facts,
            ) from error

    def _put(self, parcel: _Parcel | None) -> None:
        """As the queue's own ``put``, in which an interrupt can become a RuntimeError about a lock."""
        while True:
            try:
                self._queue.put_nowait(parcel)
            except queue.Full:
                time.sleep(_ROOM_S)
            else:
                return

    def _write_all(self) -> None:
        """The writer's thread: parcels in order; what fails is tried again before the next one."""
        parcel = self._queue.get()
        while parcel is not None:
            self._failed.append(parcel)
            self._write_failed()
            while len(self._failed) >= _WAITING and not self._closing.wait(_PAUSE_S):
                # The queue fills up meanwhile, and the segment in work grows.
                self._write_failed()
            parcel = self._queue.get()
        self._write_failed()

    def _write_failed(self) -> None:
        while self._failed:
            try:
                self._write(self._failed[0])
            except Exception as error:
                # Whatever it is, the model's thread must not hang in `close` because this one has died.
                if self._error is None:
                    _log.warning("%s Recording goes on, and writing is tried again.", error)
                self._error = error if isinstance(error, ProfileError) else ProfileError(f"{error!r}")
                return
            self._failed.pop(0)
            self._error = None

    def _write(self, parcel: _Parcel) -> None:
        uuid = self.run.uuid
        if parcel.segment is None:
            self.database.write_marks(uuid, parcel.marks)
            if parcel.vocabulary is not None:
                self.database.write_vocabulary(uuid, parcel.vocabulary)
        else:
            self.database.write_segment(
                uuid, parcel.segment, marks=parcel.marks, vocabulary=parcel.vocabulary, new=True
            )


def mark_key(name: str) -> str:
    """The fingerprint under which the progress of an input is kept: XXH3-128 of its name."""
    return xxhash.xxh3_128_hexdigest(name.encode("utf-8", "surrogateescape"))


def resumable(database: ProfileDatabase, *, identity: str, label: str) -> RunFacts | None:
    """The latest run of a model under a label, to go on with; None if there is none.

    Raises:
        ProfileIdentityError: If the label is there for other models only.
    """
    found = [run for run in database.runs() if run.label == kept_text(label)]
    mine = [run for run in found if run.identity == identity]
    if found and not mine:
        raise ProfileIdentityError(
            f"The run {label!r} in {database.name} is of the model {found[-1].identity}, not of {identity}.",
            advice="Give another label, or another profile.",
            expected=identity,
            got=found[-1].identity,
        )
    return max(mine, key=lambda run: (run.started, run.uuid), default=None)

"""The loop of generation: which sequences come next, a forward pass, a token for each of them.

Whatever generates does it here: a completion, a turn of a conversation, an answer in speech, a measurement.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch

from coterie.generation.doubts import Doubts
from coterie.generation.row_count import RowCount
from coterie.generation.sequence import Sequence
from coterie.generation.shared_pass import SharedPass
from coterie.hf.row_caches import RowsAllLeftError, RowsApartError
from coterie.integration import RowWay, row_ways
from coterie.passes.current import Stopped
from coterie.spec import DEFAULT_BATCHING, Batching

_log = logging.getLogger("coterie.generation")


class Steps:
    """Sequences that are generated side by side, in one thread.

    They join and leave between two steps, and each ends as it wishes. Unless batching is ``fast``, each gets the tokens
    and logits that it gets alone, to the bit, whoever is beside it. What is raised over one ends that one alone.

    They take turns in rounds. In each, one prompt has a piece of it computed, and then everyone that is being answered
    gets a token. So an answer waits for no more than one piece of others' prompts, and prompts advance piece by piece,
    one after the other, however long each of them is. One that reads what another writes, as a talker does, has its
    turn in each round in which that is there.

    A step is a forward pass. Where a model computes rows together (:func:`~coterie.integration.rows_together`), the
    next tokens of several who are being answered are computed in one: each weight is read once for all. Else it is of
    one sequence.

    One thread calls :meth:`step` and :meth:`finish`. Any thread may :meth:`add` and :meth:`remove`, also from within a
    step, as observers do.

    Args:
        most_rows: Sequences that share a pass at most; None for as many as the model allows.
        batching: ``exact`` if only rows that have the bits of each alone share a pass; ``fast`` if others do, too.
        measured: Whether it is measured how many of those that may share a pass had better; else all do.
    """

    def __init__(
        self, *, most_rows: int | None = None, batching: Batching = DEFAULT_BATCHING, measured: bool = True
    ) -> None:
        self._most_rows = most_rows
        self._measured = measured
        self._batching: Batching = batching
        self._lock = threading.Lock()
        self._waiting: deque[Sequence] = deque()
        # Who is still to get a token in this round.
        self._round: deque[Sequence] = deque()
        # Those of the step that is going on, and of them, those that are to end.
        self._passing: tuple[Sequence, ...] = ()
        self._leaving: list[Sequence] = []
        self._shared: SharedPass | None = None
        self._count = RowCount()
        # What a pass of several has failed with, while it shows whether it concerns one of them.
        self._failed: Exception | None = None
        self._ways: WeakKeyDictionary[Any, tuple[RowWay, ...]] = WeakKeyDictionary()
        self._doubts = Doubts()
        self._apart: WeakSet[Sequence] = WeakSet()

    @property
    def going(self) -> bool:
        """Whether there is a sequence that has not ended."""
        return bool(self._waiting or self._passing)

    def add(self, sequence: Sequence) -> None:
        """Has a sequence take part from the next step on."""
        with self._lock:
            self._waiting.append(sequence)
            ways = self._ways.get(sequence.model)
            if ways is not None and not any(way.exact for way in ways):
                # Its layers may compute rows by now: hooks that kept them from it come and go.
                del self._ways[sequence.model]

    def remove(self, sequence: Sequence) -> None:
        """Has it take no part any more, which ends it and its request; harmless if it has ended.

        What its cache holds is free at once. If the step that goes on computes something of it, it is free at the next
        layer, whoever else is in that step.
        """
        with self._lock:
            if sequence in self._waiting:
                self._waiting.remove(sequence)
                if sequence in self._round:
                    self._round.remove(sequence)
            else:
                if sequence in self._passing and sequence not in self._leaving:
                    self._leaving.append(sequence)
                    # Ends the pass if it is of nobody else.
                    sequence.request.end()
                    if self._shared is not None:
                        self._shared.leave(sequence)
                return
        sequence.cancel()

    def step(self) -> tuple[Sequence, ...]:
        """One forward pass, and a token for each sequence in it; nothing where there is none.

        Returns:
            The sequences that took part in it.

        Raises:
            BaseException: Only what should end the program, such as an interrupt; anything else that ends a sequence
                is its :attr:`~coterie.generation.sequence.Sequence.error`.
        """
        with self._lock:
            batch, counts = self._schedule()
            self._passing = batch
        try:
            with torch.no_grad():
                if counts:
                    self._compute_timed(batch)
                else:
                    self._compute(batch)
        except BaseException as error:
            for sequence in batch:
                if not sequence.ended:
                    sequence.fail(error)
            raise
        finally:
            with self._lock:
                self._passing = ()
                leaving, self._leaving = self._leaving, []
                self._waiting.extend(one for one in batch if not one.ended and one not in leaving)
            for sequence in leaving:
                if not sequence.ended:
                    sequence.cancel()
                elif isinstance(sequence.error, Stopped):
                    sequence.error = None  # it has ended as it was told to
        for sequence in batch:
            if sequence.error is not None and not isinstance(sequence.error, Exception):
                raise sequence.error
        return batch

    def finish(self, sequence: Sequence) -> None:
        """Steps until a sequence has ended, the others with it.

        Args:
            sequence: One that was added.

        Raises:
            ValueError: If it was not.
            BaseException: What ended it before its time.
        """
        try:
            while not sequence.ended:
                if not self.going:
                    raise ValueError("The sequence was not added: no step ends it.")
                self.step()
        except BaseException:
            sequence.error = None  # it is being raised; kept, it would keep every frame of its traceback
            raise
        sequence.check()

    def _schedule(self) -> tuple[tuple[Sequence, ...], bool]:
        """The sequences of the next pass: whose turn it is, and others that may share it.

        Also, whether what it takes says something about how many should.
        """
        if len(self._waiting) < 2:
            self._round.clear()
            return ((self._waiting.popleft(),) if self._waiting else ()), False
        prompt = None
        if not self._round:
            ready = [one for one in self._waiting if one.ready]
            self._round.extend(one for one in ready if not one.reading)
            prompt = next((one for one in ready if one.reading), None)
        if prompt is not None:
            batch, counts = [prompt], False
        elif not self._round:
            return (), False
        else:
            batch = [self._round.popleft()]
            beside, counts = self._beside(batch[0])
            batch += beside
        for one in batch:
            self._waiting.remove(one)
        return tuple(batch), counts

    def _beside(self, first: Sequence) -> tuple[list[Sequence], bool]:
        """Who else gets a token in this round, and gets it in the same pass; and whether others might have."""
        if not self._joins(first) or (most := self._most(first.model)) < 2:
            return [], False
        could = [one for one in self._waiting if one.model is first.model and self._joins(one)]
        if len(could) < 2:
            return [], False
        # By all of them, however many have had their turn in this round; of more than fit, in passes of one size.
        passes = math.ceil(len(could) / most)
        rows = math.ceil(len(could) / passes)
        if self._measured:
            rows = self._count.most(rows)
        beside = [one for one in self._round if one in could][: rows - 1]
        for one in beside:
            self._round.remove(one)
        return beside, self._measured

    def _most(self, model: Any) -> int:
        """Sequences of a model that may share a pass, whatever that takes."""
        ways, runtime = self._ways_of(model), getattr(model, "coterie", None)
        if not ways or runtime is None or runtime.limits_experts:
            return 1
        given = (ways[0].most, self._most_rows, runtime.most_rows)
        return min(one for one in given if one is not None)

    def _joins(self, sequence: Sequence) -> bool:
        return sequence.phase == "decode" and sequence not in self._apart

    def _ways_of(self, model: Any) -> tuple[RowWay, ...]:
        if model not in self._ways:
            self._ways[model] = row_ways(model, self._batching)
        return tuple(way for way in self._ways[model] if way.exact or self._doubts.allow(model))

    def _compute_timed(self, batch: tuple[Sequence, ...]) -> None:
        """As :meth:`_compute`, and tells what it took."""
        began = time.perf_counter()
        self._compute(batch)
        if any(one.error is not None for one in batch):
            self._count.interrupt()
        else:
            self._count.took(len(batch), time.perf_counter() - began)

    def _compute(self, batch: tuple[Sequence, ...]) -> None:
        """The next token of each. What should end the program and ends one of them takes nothing from the others."""
        outputs = self._together(batch) if len(batch) > 1 else None
        if outputs is not None:
            outputs.reverse()
        goes_on = True
        for sequence in batch:
            # What is raised keeps the frames that it went through, this one too: no outputs stay here.
            row = outputs.pop() if outputs is not None else None
            if not sequence.ended and sequence not in self._leaving and (goes_on or row is not None):
                # Who has no outputs after an interrupt is as before, and goes on another time.
                goes_on &= _advance(sequence, row)
        failed, self._failed = self._failed, None
        if failed is not None and not any(one.error for one in batch):
            self._doubts.note(batch[0].model, failed)

    def _together(self, batch: tuple[Sequence, ...]) -> list[Any] | None:
        """What one pass of all of them returned for each.

        None if there was none, or it failed: nothing has changed then, and who is concerned by what failed shows when
        each goes on alone.
        """
        model = batch[0].model
        shared = None
        try:
            ways = self._ways_of(model)
            shared = _shared(ways, batch)
            if shared is None:
                # Who is in the way takes turns from now on; all, if none is by itself.
                self._apart.update([one for one in batch if _shared(ways, (one,)) is None] or batch if ways else ())
                return None
            with self._lock:
                self._shared = shared
                for sequence in self._leaving:
                    shared.leave(sequence)
            return shared.run()
        except RowsAllLeftError:
            return None
        except RowsApartError as error:
            if shared is not None and not shared.way.exact:
                self._doubts.exclude(model, error)
            else:
                # Its layers are not what they were; they are looked at again.
                del self._ways[model]
            return None
        except Exception as error:
            _log.warning("A pass of %d sequences failed (%s); each goes on alone.", len(batch), error)
            if shared is not None and not shared.way.exact:
                self._failed = error
            return None
        finally:
            self._shared = None


def _shared(ways: tuple[RowWay, ...], batch: tuple[Sequence, ...]) -> SharedPass | None:
    """A pass of all of them, by the best way that there is."""
    return next((found for way in ways if (found := SharedPass.of(way, batch)) is not None), None)


def _advance(sequence: Sequence, outputs: Any) -> bool:
    """A sequence's next token, by what a pass returned for it; by a pass of its own where there was none.

    Returns:
        Whether the program is to go on: not if what has ended the sequence should end that, too.
    """
    try:
        sequence.take(sequence.run() if outputs is None else outputs)
    except BaseException as error:
        sequence.fail(error)
        return isinstance(error, Exception)
    return True


def generated(sequence: Sequence) -> Sequence:
    """Takes one sequence to its end, with nobody beside it.

    Raises:
        BaseException: What ended it before its time.
    """
    steps = Steps()
    steps.add(sequence)
    steps.finish(sequence)
    return sequence

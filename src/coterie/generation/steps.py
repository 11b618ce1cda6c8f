"""The loop of generation: which sequences come next, a forward pass, a token for each of them.

Whatever generates does it here: a completion, a turn of a conversation, an answer in speech, a measurement.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from coterie.generation.sequence import Sequence


class Steps:
    """Sequences that are generated side by side, in one thread.

    They join and leave between two steps, and each ends as it wishes. What is raised over one ends that one alone.

    They take turns in rounds. In each, one prompt has a piece of it computed, and then everyone that is being answered
    gets a token. So an answer waits for no more than one piece of others' prompts, and prompts advance piece by piece,
    one after the other, however long each of them is.
    """

    def __init__(self) -> None:
        self._waiting: deque[Sequence] = deque()
        # Who is still to get a token in this round.
        self._round: deque[Sequence] = deque()

    @property
    def going(self) -> bool:
        """Whether there is a sequence that has not ended."""
        return bool(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Has a sequence take part from the next step on."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Has it take no part any more, which ends it; harmless if it has ended."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            if sequence in self._round:
                self._round.remove(sequence)
            sequence.cancel()

    def step(self) -> tuple[Sequence, ...]:
        """One forward pass, and a token for each sequence in it; nothing where there is none.

        Returns:
            The sequences that took part in it.

        Raises:
            BaseException: Only what should end the program, such as an interrupt; anything else that ends a sequence
                is its :attr:`~coterie.generation.sequence.Sequence.error`.
        """
        if not self.going:
            return ()
        batch = self._schedule()
        try:
            with torch.no_grad():
                self._postprocess(batch, self._run(batch))
        except BaseException as error:
            for sequence in batch:
                sequence.fail(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._waiting.extend(sequence for sequence in batch if not sequence.ended)
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

    def _schedule(self) -> tuple[Sequence, ...]:
        """The sequences of the next pass: whose turn it is. One for now, as a pass takes one's rows."""
        prompt = None
        if not self._round:
            self._round.extend(one for one in self._waiting if not one.reading)
            prompt = next((one for one in self._waiting if one.reading), None)
        due = self._round.popleft() if prompt is None else prompt
        self._waiting.remove(due)
        return (due,)

    def _run(self, batch: tuple[Sequence, ...]) -> Any:
        """The forward pass."""
        (sequence,) = batch
        return sequence.run()

    def _postprocess(self, batch: tuple[Sequence, ...], outputs: Any) -> None:
        """The next token of each."""
        (sequence,) = batch
        sequence.take(outputs)


def generated(sequence: Sequence) -> Sequence:
    """Takes one sequence to its end, with nobody beside it.

    Raises:
        BaseException: What ended it before its time.
    """
    steps = Steps()
    steps.add(sequence)
    steps.finish(sequence)
    return sequence

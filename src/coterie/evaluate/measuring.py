"""The pieces of an evaluation, one after the other: through the models, to what is found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from coterie.evaluate.evaluation import EvaluationProgress, ProgressCallback
from coterie.evaluate.journal import Continued, Finished, Journal, Key
from coterie.evaluate.memory import Shares, logits_nbytes, share_memory
from coterie.evaluate.reads import Reads
from coterie.evaluate.reference import Reference
from coterie.evaluate.scores import TokenScores
from coterie.evaluate.subject import Subject
from coterie.evaluate.tasks import PromptTask, Task, WindowTask


class Run:
    """Windows and prompts, each with what is found: those in a journal, and the rest from the models.

    Args:
        subject: The model.
        full: What it is compared with, or None.
        windows: The windows of all texts, in order.
        prompts: What is continued after them.
        inputs: Input tokens of a window at most.
        length: Tokens of any sequence at most: of a window, or of a prompt with its continuation.
        journal: What is finished, and where the rest is kept; None to keep nothing.
        kept: What the full model finds; None where it is run beside the other.
        progress: Told after every piece.
    """

    def __init__(
        self,
        subject: Subject,
        full: Subject | None,
        windows: Sequence[WindowTask],
        prompts: Sequence[PromptTask],
        *,
        inputs: int,
        length: int,
        journal: Journal | None,
        kept: Reference | None,
        progress: ProgressCallback | None,
    ) -> None:
        self._subject = subject
        self._full = full
        self._windows = windows
        self._prompts = prompts
        self._inputs = inputs
        self._length = length
        self._journal = journal
        self._kept = kept
        self._progress = progress
        self._done: dict[Key, Finished | Continued] = {} if journal is None else dict(journal.done)

    @property
    def _tasks(self) -> list[Task]:
        return [*self._windows, *self._prompts]

    def finish(self) -> None:
        """Computes what is left; opens the models only if there is any."""
        tasks, kept = self._tasks, self._kept
        to_do = [task for task in tasks if task.key not in self._done]
        if not to_do:
            return
        before = tasks.index(to_do[0]) - 1
        again = [tasks[before]] if self._subject.in_order and before >= 0 else []
        lacking = [] if kept is None else [task for task in (*again, *to_do) if not task.is_kept(kept)]
        tell = self._meter(to_do, lacking)
        if kept is not None and lacking:
            self._keep(lacking, kept, tell)
        subject, full = self._subject, self._full if kept is None else None
        with ExitStack() as stack:
            shares = self._shares(subject, full, kept=kept is not None)
            reference = None
            if full is not None:
                reference = stack.enter_context(self._opened(full, shares.full))
            model = stack.enter_context(self._opened(subject, shares.model))
            for task in again:
                task.finish(model, reference, kept)
            for task in to_do:
                finished = self._done[task.key] = task.finish(model, reference, kept)
                if self._journal is not None:
                    self._journal.append(task.key, finished)
                tell(task.tokens)

    def _keep(self, tasks: Sequence[Task], kept: Reference, tell: Callable[[int], None]) -> None:
        """Runs the full model, which is alone, and keeps what it finds."""
        full = self._full
        assert full is not None, "there is nothing to keep of no model"
        with self._opened(full, self._shares(full, None).model) as model:
            for task in tasks:
                task.keep(model, kept)
                tell(task.tokens)

    def _shares(self, model: Subject, full: Subject | None, *, kept: bool = False) -> Shares:
        said = self._subject.opening
        return share_memory(
            model.source,
            None if full is None else full.source,
            memory=said.memory,
            expert_memory=said.expert_memory,
            context=self._length,
            kept=kept,
        )

    @contextmanager
    def _opened(self, subject: Subject, memory: int | None) -> Iterator[Any]:
        with subject.open(memory=memory, max_context=self._length) as model:
            model.coterie.keep_for_logits(logits_nbytes(subject.source, self._inputs))
            yield model

    def scores(self) -> list[TokenScores]:
        """Those of each text."""
        found: dict[int, list[TokenScores]] = {}
        for task in self._windows:
            finished = self._done[task.key]
            assert isinstance(finished, Finished), "a window has scores"
            found.setdefault(task.key[0], []).append(finished.scores)
        return [TokenScores.join(scores) for scores in found.values()]

    def continuations(self) -> list[Continued]:
        """What each prompt was continued with."""
        found = [self._done[task.key] for task in self._prompts]
        return [one for one in found if isinstance(one, Continued)]

    def reads(self) -> tuple[Reads | None, Reads | None]:
        """What the model and the full one read for windows, where tokens were computed in order."""
        finished = [one for one in self._done.values() if isinstance(one, Finished)]
        return Reads.total(one.reads for one in finished), Reads.total(one.full_reads for one in finished)

    def _meter(self, to_do: Sequence[Task], lacking: Sequence[Task]) -> Callable[[int], None]:
        """A function to call with the tokens of a piece that is done, by either model."""
        left = sum(task.tokens for task in (*to_do, *lacking))
        total = sum(task.tokens for task in (*self._tasks, *lacking))
        done = earlier = total - left
        begin = time.monotonic()

        def tell(tokens: int) -> None:
            nonlocal done
            done += tokens
            if self._progress is not None:
                elapsed = time.monotonic() - begin
                self._progress(EvaluationProgress(done=done, total=total, earlier=earlier, elapsed_s=elapsed))

        tell(0)
        return tell

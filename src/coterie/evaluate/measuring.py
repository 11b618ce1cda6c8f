"""The tasks of an evaluation, one after the other: through the models, to what is found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice

from coterie.cluster.workers import never
from coterie.evaluate.evaluation import EvaluationProgress, ProgressCallback
from coterie.evaluate.examining import Examination
from coterie.evaluate.journal import Continued, Finished, Journal, Key
from coterie.evaluate.media import MediumTask
from coterie.evaluate.reads import Reads
from coterie.evaluate.reference import Reference
from coterie.evaluate.scores import TokenScores
from coterie.evaluate.subject import Subject
from coterie.evaluate.tasks import Piece, PromptTask, Task, WindowTask


class Run:
    """Windows and prompts, each with what is found: those in a journal, and the rest from the models.

    Args:
        subject: The model.
        full: What it is compared with, or None.
        windows: The windows of all texts, in order, and after them sounds and pictures.
        prompts: What is continued after them.
        inputs: Input tokens of a window at most.
        length: Tokens of any sequence at most: of a window, or of a prompt with its continuation.
        journal: What is finished, and where the rest is kept; None to keep nothing.
        kept: What the full model finds; None where it is run beside the other.
        ray: Address of a cluster whose workers compute; None to compute here.
        progress: Told after every task.
    """

    def __init__(
        self,
        subject: Subject,
        full: Subject | None,
        windows: Sequence[WindowTask | MediumTask],
        prompts: Sequence[PromptTask],
        *,
        inputs: int,
        length: int,
        journal: Journal | None,
        kept: Reference | None,
        ray: str | None,
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
        self._ray = ray
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
        examination = Examination(
            said=self._subject.opening,
            model=self._subject,
            full=self._full if kept is None else None,
            inputs=self._inputs,
            length=self._length,
            kept=kept is not None,
        )

        def shard(task: Task) -> tuple[Piece, object]:
            return task.piece(), None if kept is None else task.kept(kept)

        with examination.workers(self._ray) as workers:
            found = workers.map([*again, *to_do], shard, never)
            # What is computed again is for what is in memory after it.
            for task, finished in islice(found, len(again), None):
                assert finished is not None, "every task has a piece"
                self._done[task.key] = finished
                if self._journal is not None:
                    self._journal.append(task.key, finished)
                tell(task.tokens)

    def _keep(self, tasks: Sequence[Task], kept: Reference, tell: Callable[[int], None]) -> None:
        """Has the full model run, which is alone, and keeps what it finds."""
        examination = Examination(
            said=self._subject.opening, model=None, full=self._full, inputs=self._inputs, length=self._length
        )
        with examination.workers(self._ray) as workers:
            for task, found in workers.map(tasks, lambda task: (task.piece(), None), never):
                task.keep(kept, found)
                tell(task.tokens)

    def scores(self) -> dict[int, list[TokenScores]]:
        """Those of each window of each text, and of each sound or picture of each domain, by number."""
        found: dict[int, list[TokenScores]] = {}
        for task in self._windows:
            finished = self._done[task.key]
            assert isinstance(finished, Finished), "a window has scores"
            found.setdefault(task.key[0], []).append(finished.scores)
        return found

    def continuations(self) -> list[Continued]:
        """What each prompt was continued with."""
        found = [self._done[task.key] for task in self._prompts]
        return [one for one in found if isinstance(one, Continued)]

    def reads(self) -> tuple[Reads | None, Reads | None]:
        """What the model and the full one read for windows, where tokens were computed in order."""
        finished = [one for one in self._done.values() if isinstance(one, Finished)]
        return Reads.total(one.reads for one in finished), Reads.total(one.full_reads for one in finished)

    def _meter(self, to_do: Sequence[Task], lacking: Sequence[Task]) -> Callable[[int], None]:
        """A function to call with the tokens of a task that is done, by either model."""
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

"""Who computes the pieces of an evaluation: the models that are open, in this process or in a worker's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from coterie.cluster.spreading import spread
from coterie.cluster.workers import Here, RemoteModel, WorkerFacts, Workers, never, place_of
from coterie.engine.bit_identity import with_threads, worker_facts
from coterie.engine.quiet import quiet_libraries
from coterie.evaluate.memory import Shares, logits_nbytes, share_memory
from coterie.evaluate.subject import Side, Subject
from coterie.evaluate.tasks import Piece
from coterie.spec.opening import Opening

Shard = tuple[Piece, Any]
"""A piece, and what the full model found before; None if it did not."""


@dataclass(frozen=True, slots=True)
class Examiner:
    """The models that are open.

    Attributes:
        model: The one that is evaluated; None where only the full one's results are wanted.
        full: The full one; None where there is none, or its results are there.
    """

    model: Side | None
    full: Side | None

    def run(self, shard: Shard) -> Any:
        """What the model finds in a piece; or the full one, if it is alone."""
        piece, found = shard
        if self.full is not None:
            found = piece.of_full(self.full)
        return found if self.model is None else piece.of_model(self.model, found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """Which models are open, and how they share the memory of their process.

    Attributes:
        said: How the model that is evaluated is opened: the budget is that of the whole process.
        model: As of :class:`Examiner`.
        full: Likewise.
        inputs: Input tokens of a window at most.
        length: Tokens of any sequence at most.
        kept: Whether the model is alone, beside results of the full one that are kept on disk.
    """

    said: Opening
    model: Subject | None
    full: Subject | None
    inputs: int
    length: int
    kept: bool = False

    @contextmanager
    def examiner(self) -> Iterator[Examiner]:
        """Opens the models; frees them at the end. Errors as of :meth:`Subject.open`."""
        shares = self._shares()
        with ExitStack() as stack:
            full = None
            if self.full is not None:
                full = stack.enter_context(self._opened(self.full, shares.full if self.model else shares.model))
            model = None if self.model is None else stack.enter_context(self._opened(self.model, shares.model))
            yield Examiner(model, full)

    @contextmanager
    def open(self) -> Iterator[tuple[Examiner, WorkerFacts]]:
        """As a worker elsewhere does."""
        with ExitStack() as stack:
            with quiet_libraries(show_downloads=False):
                examiner = stack.enter_context(self.examiner())
            yield examiner, self.facts()

    def facts(self) -> WorkerFacts:
        """What decides whether what is found here belongs together with what others find."""
        subjects = [one for one in (self.model, self.full) if one is not None]
        return worker_facts(*((str(one.path), one.stored, one.opening) for one in subjects))

    @contextmanager
    def workers(self, ray: str | None) -> Iterator[Workers[Shard, Any]]:
        """Those who compute: this process, or the workers of a cluster.

        Args:
            ray: The cluster's address; None for this process.

        Raises:
            UsageError: If there is no such cluster, or no room in it.
            ClusterError: If a worker cannot open the models, or has others.
            CoterieError: As opening the models does.
        """
        if ray is None:
            with self.examiner() as examiner:
                yield Here(examiner)
            return
        only = self.model or self.full
        assert only is not None, "somebody has to be examined"
        remote = with_threads(RemoteModel(path=str(only.path), opening=self.said, address=ray))
        sent = self._elsewhere(remote.opening)
        with spread(remote.address, remote.each, sent, sent.facts(), never) as (workers, _):
            yield workers

    def _elsewhere(self, said: Opening) -> Examination:
        """The same for workers, who run in other directories, each with as many threads as this process."""

        def moved(subject: Subject | None) -> Subject | None:
            if subject is None:
                return None
            source = subject.opening.source
            opening = replace(
                subject.opening, threads=said.threads, source=None if source is None else place_of(source)
            )
            return replace(subject, path=place_of(subject.path), opening=opening)

        return replace(self, said=said, model=moved(self.model), full=moved(self.full))

    def _shares(self) -> Shares:
        subject = self.model or self.full
        assert subject is not None, "somebody has to be examined"
        return share_memory(
            subject.source,
            None if self.full is None or self.model is None else self.full.source,
            memory=self.said.memory,
            expert_memory=self.said.expert_memory,
            context=self.length,
            inputs=self.inputs,
            kept=self.kept,
        )

    @contextmanager
    def _opened(self, subject: Subject, memory: int | None) -> Iterator[Side]:
        with subject.open(memory=memory, max_context=self.length) as model:
            model.coterie.keep_for_logits(logits_nbytes(subject.source, self.inputs))
            yield Side(subject=subject, model=model)

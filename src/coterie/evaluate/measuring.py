"""The windows of an evaluation, one after the other: through the models, to scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from coterie.evaluate.evaluation import EvaluationProgress, ProgressCallback
from coterie.evaluate.journal import Finished, Journal
from coterie.evaluate.memory import Shares, logits_nbytes, share_memory
from coterie.evaluate.reads import Reads
from coterie.evaluate.reference import Reference
from coterie.evaluate.scores import TokenScores, predict, predict_in_steps, score
from coterie.evaluate.subject import Subject
from coterie.evaluate.texts import Text
from coterie.evaluate.windows import Window

if TYPE_CHECKING:
    from torch import Tensor


class Run:
    """The windows of texts, each with its scores: those in a journal, and the rest from the models.

    Args:
        subject: The model.
        full: What it is compared with, or None.
        texts: As tokens.
        plans: The windows of each.
        inputs: Input tokens of a window at most.
        journal: Finished windows, and where further ones are kept; None to keep nothing.
        kept: Logits of the full model; None where it is run beside the other.
        progress: Told after every window.
    """

    def __init__(
        self,
        subject: Subject,
        full: Subject | None,
        texts: Sequence[Text],
        plans: Sequence[Sequence[Window]],
        inputs: int,
        journal: Journal | None,
        kept: Reference | None,
        progress: ProgressCallback | None,
    ) -> None:
        self._subject = subject
        self._full = full
        self._texts = texts
        self._plans = plans
        self._inputs = inputs
        self._journal = journal
        self._kept = kept
        self._progress = progress
        self._done: dict[tuple[int, int], Finished] = {} if journal is None else dict(journal.done)

    def finish(self) -> None:
        """Computes what is left; opens the models only if there is any."""
        order = [(t, w) for t, plan in enumerate(self._plans) for w in range(len(plan))]
        to_do = [place for place in order if place not in self._done]
        if not to_do:
            return
        before = order.index(to_do[0]) - 1
        again = [order[before]] if self._subject.in_order and before >= 0 else []
        lacking = [] if self._kept is None else [place for place in (*again, *to_do) if place not in self._kept]
        tell = self._meter(to_do, lacking)
        if lacking:
            self._keep(lacking, tell)
        subject, full = self._subject, self._full if self._kept is None else None
        with ExitStack() as stack:
            shares = self._shares(subject, full, kept=self._kept is not None)
            reference = None
            if full is not None:
                reference = stack.enter_context(self._opened(full, shares.full))
            model = stack.enter_context(self._opened(subject, shares.model))
            for place in again:
                self._window(model, reference, place)
            for place in to_do:
                finished = self._done[place] = self._window(model, reference, place)
                if self._journal is not None:
                    self._journal.append(*place, finished)
                tell(self._window_at(place).tokens)

    def _keep(self, places: Sequence[tuple[int, int]], tell: Callable[[int], None]) -> None:
        """Computes logits of the full model, which is alone, and keeps them."""
        full, kept = self._full, self._kept
        assert full is not None, "there is nothing to keep of no model"
        assert kept is not None, "there is nowhere to keep them"
        run = predict_in_steps if self._subject.in_order else predict
        with self._opened(full, self._shares(full, None).model) as model:
            for place in places:
                window = self._window_at(place)
                kept.keep(place, run(model, self._texts[place[0]], window))
                tell(window.tokens)

    def _shares(self, model: Subject, full: Subject | None, *, kept: bool = False) -> Shares:
        said = self._subject.opening
        return share_memory(
            model.source,
            None if full is None else full.source,
            memory=said.memory,
            expert_memory=said.expert_memory,
            context=self._inputs,
            kept=kept,
        )

    @contextmanager
    def _opened(self, subject: Subject, memory: int | None) -> Iterator[Any]:
        with subject.open(memory=memory, max_context=self._inputs) as model:
            model.coterie.keep_for_logits(logits_nbytes(subject.source, self._inputs))
            yield model

    def _window_at(self, place: tuple[int, int]) -> Window:
        return self._plans[place[0]][place[1]]

    def scores(self) -> list[TokenScores]:
        """Those of each text."""
        return [
            TokenScores.join([self._done[t, w].scores for w in range(len(plan))]) for t, plan in enumerate(self._plans)
        ]

    def reads(self) -> tuple[Reads | None, Reads | None]:
        """What the model and the full one read, where tokens were computed in order."""
        finished = self._done.values()
        return Reads.total(one.reads for one in finished), Reads.total(one.full_reads for one in finished)

    def _window(self, model: Any, reference: Any | None, place: tuple[int, int]) -> Finished:
        text, window = self._texts[place[0]], self._window_at(place)
        expected, full_reads = None, None
        if self._kept is not None:
            expected = self._kept.load(place, window.tokens)
        if reference is not None:
            run = predict_in_steps if self._subject.in_order else predict
            expected, full_reads = self._counted(reference, window, lambda: run(reference, text, window))
        logits, reads = self._counted(model, window, lambda: self._predict(model, text, window))
        return Finished(score(logits, text.ids[window.predicted], expected), reads, full_reads)

    def _counted(self, model: Any, window: Window, compute: Callable[[], Tensor]) -> tuple[Tensor, Reads | None]:
        """Logits, and what was read for them where tokens are computed in order."""
        if not self._subject.in_order:
            return compute(), None
        before = model.coterie.stats()
        logits = compute()
        return logits, Reads.between(before, model.coterie.stats(), window.tokens)

    def _predict(self, model: Any, text: Text, window: Window) -> Tensor:
        """Logits of a window, with the experts that are to be left out left out."""
        in_order, how = self._subject.in_order, self._subject.adapt_experts
        if how is None:
            return (predict_in_steps if in_order else predict)(model, text, window)
        with model.coterie.adapt_experts(how) as adaptation:
            run = predict_in_steps if in_order or adaptation.settings.by_salience else predict
            return run(model, text, window)

    def _meter(self, to_do: Sequence[tuple[int, int]], lacking: Sequence[tuple[int, int]]) -> Callable[[int], None]:
        """A function to call with the tokens of a window that is done, by either model."""
        left = sum(self._window_at(place).tokens for place in (*to_do, *lacking))
        total = sum(window.tokens for plan in self._plans for window in plan)
        total += sum(self._window_at(place).tokens for place in lacking)
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

"""Runs a model, and the full one beside it, over texts, window by window."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import UsageError
from coterie.evaluate.confidence import block_starts
from coterie.evaluate.evaluation import Evaluation, EvaluationProgress, ProgressCallback
from coterie.evaluate.journal import Finished, Journal
from coterie.evaluate.memory import logits_nbytes, share_memory
from coterie.evaluate.planning import input_tokens, steps, tokenise
from coterie.evaluate.quality import measure
from coterie.evaluate.reads import Reads
from coterie.evaluate.scores import TokenScores, predict, predict_in_steps, score
from coterie.evaluate.subject import Subject
from coterie.evaluate.texts import Text
from coterie.evaluate.windows import Window, plan_windows
from coterie.files.text import read_text
from coterie.spec import DEFAULT_POLICY, AdaptiveExperts, Missing
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from torch import Tensor


def evaluate(
    model: str | Path,
    texts: Sequence[str | Path],
    *,
    against: str | Path | None = None,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    memory: str | int | None = None,
    expert_memory: str | int | None = None,
    component: str | None = None,
    missing: Missing | None = None,
    source: str | Path | None = None,
    eviction: str = DEFAULT_POLICY,
    experts_per_token: int | None = None,
    drop_cold: float | None = None,
    adapt_experts: str | AdaptiveExperts | None = None,
    verify_reads: bool = False,
    revision: str | None = None,
    offline: bool = False,
    threads: int | None = None,
    journal: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Measures how well a model predicts texts, and how far it is from the full model.

    Both models are open at once, under one budget, and read a window at a time; of its logits only a few numbers per
    token are kept. Beside the models this takes ``models × context × vocabulary × 4`` bytes, and 64 MiB. Which experts
    are in memory changes no figure, unless ``drop_cold`` is given.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``"bundled"``. Of a whole omni model its thinker is used.
        texts: UTF-8 files.
        against: The model to compare with: usually a lossless store or checkpoint of the same one, with all experts.
        context: Input tokens of a window; default: 512, or what the models were made for if that is less.
        stride: Predictions of a window; default: as many as inputs. A smaller one gives each token more context, and
            costs as many times the work. See :func:`plan_windows`.
        limit: The most predictions of each text.
        memory: Ceiling for the whole process, both models and their logits together.
        expert_memory: Size of each model's arena of experts, as for :func:`coterie.load`.
        component: As for :func:`coterie.load`, for both.
        missing: As there, for ``model``; ``against`` has to be complete.
        source: As there, for ``model``.
        eviction: As there, for both.
        experts_per_token: As there, for ``model``.
        drop_cold: As there, for ``model``. What is left out then depends on what was read before. So both models
            compute token by token, text after text, as in generation; nothing is prefetched; and it is told what each
            of them read. An interrupted evaluation that goes on computes the window before again, so that about the
            same experts are in memory.
        adapt_experts: Which of the chosen experts of ``model`` are left out, as for ``model.coterie.adapt_experts``. By
            salience, tokens are computed one by one, as in generation; each window begins without a memory.
        verify_reads: As there, for both.
        revision: As there, for ``model``.
        offline: As there, for both.
        threads: As there.
        journal: A file that keeps the scores of finished windows, and from which an interrupted evaluation of the same
            models, texts and settings goes on.
        progress: Told after every window.

    Raises:
        InputError: If a text is missing, empty, not UTF-8 or shorter than two tokens.
        UsageError: If the two models differ in tokenizer or vocabulary, or a value is out of range.
        UnsupportedError: If a model does not predict next tokens.
        CoterieError: As opening the models does.
    """
    opening = Opening(
        memory=memory,
        expert_memory=expert_memory,
        component=component,
        missing=missing,
        source=source,
        eviction=eviction,
        experts_per_token=experts_per_token,
        drop_cold=drop_cold,
        verify_reads=verify_reads,
        revision=revision,
        offline=offline,
        threads=threads,
    )
    return evaluate_opening(
        model,
        texts,
        opening,
        against=against,
        context=context,
        stride=stride,
        limit=limit,
        adapt_experts=adapt_experts,
        journal=journal,
        progress=progress,
    )


def evaluate_opening(
    model: str | Path,
    texts: Sequence[str | Path],
    opening: Opening,
    *,
    against: str | Path | None = None,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    adapt_experts: str | AdaptiveExperts | None = None,
    journal: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """:func:`evaluate`, told how the models are opened in one piece."""
    opening.check()
    if not texts:
        raise UsageError("There is no text to evaluate with.", advice="Name one or more UTF-8 files.")
    if isinstance(adapt_experts, str):
        AdaptiveExperts.of(adapt_experts, 1)  # an unknown name is told before a model is opened
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1 token, not {limit}.", got=limit)
    if opening.drop_cold is not None:
        # What is prefetched depends on how fast the disk is, and then the result would, too.
        opening = replace(opening, prefetch="off")
    contents = [(str(path), read_text(path, filled=True)) for path in texts]
    subject = Subject(path=model, opening=opening, adapt_experts=adapt_experts)
    full = None
    if against is not None:
        full = Subject(
            path=against,
            opening=replace(opening, missing=None, source=None, experts_per_token=None, drop_cold=None, revision=None),
        )
    inputs = input_tokens(subject, full, context)
    tokenised = tokenise(subject, full, contents, limit)
    room, step = steps(tokenised, inputs, stride)
    plans = [plan_windows(len(text.ids), room, step) for text in tokenised]
    with ExitStack() as stack:
        record = None
        if journal is not None:
            header = _header(subject, full, tokenised, inputs, step)
            record = stack.enter_context(Journal(journal, header))
        run = _Run(subject, full, tokenised, plans, inputs, record, progress)
        run.finish()
    scores, (reads, full_reads) = run.scores(), run.reads()
    starts = [block_starts([window.tokens for window in plan], room) for plan in plans]
    return Evaluation(
        model=subject.facts,
        against=None if full is None else full.facts,
        context=inputs,
        stride=step,
        limit=limit,
        missing=opening.missing,
        experts_per_token=opening.experts_per_token,
        drop_cold=opening.drop_cold,
        adapt_experts=None if adapt_experts is None else str(adapt_experts),
        reads=reads,
        full_reads=full_reads,
        texts=tuple(
            measure(text.name, [one], [begins]) for text, one, begins in zip(tokenised, scores, starts, strict=True)
        ),
        total=measure("all", scores, starts),
    )


def _header(subject: Subject, full: Subject | None, texts: Sequence[Text], inputs: int, step: int) -> dict[str, Any]:
    """What must be equal for the scores of two runs to belong together."""
    return {
        "model": subject.fingerprint,
        "against": None if full is None else full.fingerprint,
        "texts": [hashlib.sha256(repr((text.prefix, text.ids)).encode()).hexdigest() for text in texts],
        "context": inputs,
        "stride": step,
        "missing": subject.opening.missing,
        "experts_per_token": subject.opening.experts_per_token,
        "drop_cold": subject.opening.drop_cold,
        "cache": subject.cache_settings if subject.in_order else None,
        "adapt_experts": None if subject.adapt_experts is None else str(subject.adapt_experts),
        "component": subject.opening.component,
        "versions": {name: version(name) for name in ("coterie", "torch", "transformers")},
    }


class _Run:
    """The windows of texts, each with its scores: those in a journal, and the rest from the models.

    Args:
        subject: The model.
        full: What it is compared with, or None.
        texts: As tokens.
        plans: The windows of each.
        inputs: Input tokens of a window at most.
        journal: Finished windows, and where further ones are kept; None to keep nothing.
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
        progress: ProgressCallback | None,
    ) -> None:
        self._subject = subject
        self._full = full
        self._texts = texts
        self._plans = plans
        self._inputs = inputs
        self._journal = journal
        self._progress = progress
        self._done: dict[tuple[int, int], Finished] = {} if journal is None else dict(journal.done)

    def finish(self) -> None:
        """Computes what is left; opens the models only if there is any."""
        order = [(t, w) for t, plan in enumerate(self._plans) for w in range(len(plan))]
        to_do = [place for place in order if place not in self._done]
        if not to_do:
            return
        subject, full = self._subject, self._full
        shares = share_memory(
            subject.source,
            None if full is None else full.source,
            memory=subject.opening.memory,
            expert_memory=subject.opening.expert_memory,
            context=self._inputs,
        )
        with ExitStack() as stack:
            reference = None
            if full is not None:
                reference = stack.enter_context(full.open(memory=shares.full, max_context=self._inputs))
            model = stack.enter_context(subject.open(memory=shares.model, max_context=self._inputs))
            for one in (model, reference):
                if one is not None:
                    one.coterie.keep_for_logits(logits_nbytes(subject.source, self._inputs))
            tell = _meter(self._plans, to_do, self._progress)
            before = order.index(to_do[0]) - 1
            if subject.in_order and before >= 0:
                self._window(model, reference, order[before])
            for place in to_do:
                finished = self._done[place] = self._window(model, reference, place)
                if self._journal is not None:
                    self._journal.append(*place, finished)
                tell(self._plans[place[0]][place[1]].tokens)

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
        text, window = self._texts[place[0]], self._plans[place[0]][place[1]]
        expected, full_reads = None, None
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


def _meter(
    plans: Sequence[Sequence[Window]], to_do: Sequence[tuple[int, int]], progress: ProgressCallback | None
) -> Callable[[int], None]:
    """A function to call with the predictions of a window that is done."""
    total = sum(window.tokens for plan in plans for window in plan)
    done = earlier = total - sum(plans[t][w].tokens for t, w in to_do)
    begin = time.monotonic()

    def tell(tokens: int) -> None:
        nonlocal done
        done += tokens
        if progress is not None:
            elapsed = time.monotonic() - begin
            progress(EvaluationProgress(done=done, total=total, earlier=earlier, elapsed_s=elapsed))

    tell(0)
    return tell

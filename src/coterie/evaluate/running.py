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
from coterie.evaluate.journal import Journal
from coterie.evaluate.memory import logits_nbytes, share_memory
from coterie.evaluate.quality import measure
from coterie.evaluate.scores import TokenScores, predict, predict_in_steps, score
from coterie.evaluate.subject import Subject
from coterie.evaluate.texts import Text, check_same_tokens, encode
from coterie.evaluate.windows import Window, plan_windows
from coterie.files.text import read_text
from coterie.hf.context import model_context
from coterie.spec import DEFAULT_POLICY, AdaptiveExperts, Missing
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_CONTEXT = 512
"""Input tokens of a window where the caller states none and the model allows them; llama.cpp's default."""


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
    are in memory changes no figure.

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
    contents = [(str(path), read_text(path, filled=True)) for path in texts]
    subject = Subject(path=model, opening=opening, adapt_experts=adapt_experts)
    full = None
    if against is not None:
        full = Subject(
            path=against,
            opening=replace(opening, missing=None, source=None, experts_per_token=None, revision=None),
        )
    inputs = _context(subject, full, context)
    tokenised = _tokenise(subject, full, contents, limit)
    room, step = _steps(tokenised, inputs, stride)
    plans = [plan_windows(len(text.ids), room, step) for text in tokenised]
    with ExitStack() as stack:
        record = None
        if journal is not None:
            header = _header(subject, full, tokenised, inputs, step)
            record = stack.enter_context(Journal(journal, header))
        scores = _run(subject, full, tokenised, plans, inputs, record, progress)
    starts = [block_starts([window.tokens for window in plan], room) for plan in plans]
    return Evaluation(
        model=subject.facts,
        against=None if full is None else full.facts,
        context=inputs,
        stride=step,
        limit=limit,
        missing=opening.missing,
        experts_per_token=opening.experts_per_token,
        adapt_experts=None if adapt_experts is None else str(adapt_experts),
        texts=tuple(
            measure(text.name, [one], [begins]) for text, one, begins in zip(tokenised, scores, starts, strict=True)
        ),
        total=measure("all", scores, starts),
    )


def _context(subject: Subject, full: Subject | None, wanted: int | None) -> int:
    """Input tokens of a window, none more than either model was made for."""
    longest = [model_context(one.source.config) for one in (subject, full) if one is not None]
    limits = [limit for limit in longest if limit is not None]
    most = min(limits, default=None)
    if wanted is None:
        return DEFAULT_CONTEXT if most is None else min(DEFAULT_CONTEXT, most)
    if wanted < 1:
        raise UsageError(f"context must be at least 1 token, not {wanted}.", got=wanted)
    if most is not None and wanted > most:
        raise UsageError(
            f"context={wanted} is more than the {most} tokens that the model was made for.",
            advice="What it predicts beyond them says nothing about its quality.",
            got=wanted,
            most=most,
        )
    return wanted


def _tokenise(
    subject: Subject, full: Subject | None, contents: Sequence[tuple[str, str]], limit: int | None
) -> list[Text]:
    texts = [encode(subject.tokenizer, content, name=name, limit=limit) for name, content in contents]
    if full is not None:
        again = [encode(full.tokenizer, content, name=name, limit=limit) for name, content in contents]
        check_same_tokens(subject.tokenizer, full.tokenizer, texts, again)
    return texts


def _steps(texts: Sequence[Text], inputs: int, stride: int | None) -> tuple[int, int]:
    """Tokens of a text in a window, beside its prefix, and predictions in it."""
    room = inputs - max(len(text.prefix) for text in texts)
    if room < 1:
        raise UsageError(
            f"context={inputs} leaves no room beside the token that begins every text.",
            advice="Give at least 2.",
            got=inputs,
        )
    if stride is not None and not 1 <= stride <= inputs:
        raise UsageError(
            f"stride={stride} is not between 1 and the context of {inputs} tokens.",
            advice="A larger stride would leave tokens out.",
            got=stride,
        )
    return room, room if stride is None else min(stride, room)


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
        "adapt_experts": None if subject.adapt_experts is None else str(subject.adapt_experts),
        "component": subject.opening.component,
        "versions": {name: version(name) for name in ("coterie", "torch", "transformers")},
    }


def _run(
    subject: Subject,
    full: Subject | None,
    texts: Sequence[Text],
    plans: Sequence[Sequence[Window]],
    inputs: int,
    journal: Journal | None,
    progress: ProgressCallback | None,
) -> list[TokenScores]:
    """The scores of each text: those in the journal, and the rest from the models, opened only if there is any."""
    done = {} if journal is None else dict(journal.done)
    to_do = [(t, w) for t, plan in enumerate(plans) for w in range(len(plan)) if (t, w) not in done]
    if to_do:
        shares = share_memory(
            subject.source,
            None if full is None else full.source,
            memory=subject.opening.memory,
            expert_memory=subject.opening.expert_memory,
            context=inputs,
        )
        with ExitStack() as stack:
            reference = None
            if full is not None:
                reference = stack.enter_context(full.open(memory=shares.full, max_context=inputs))
            model = stack.enter_context(subject.open(memory=shares.model, max_context=inputs))
            for one in (model, reference):
                if one is not None:
                    one.coterie.keep_for_logits(logits_nbytes(subject.source, inputs))
            tell = _meter(plans, to_do, progress)
            for t, w in to_do:
                text, window = texts[t], plans[t][w]
                expected = None if reference is None else predict(reference, text, window)
                scores = score(_predict(subject, model, text, window), text.ids[window.predicted], expected)
                if journal is not None:
                    journal.append(t, w, scores)
                done[t, w] = scores
                tell(window.tokens)
    return [TokenScores.join([done[t, w] for w in range(len(plan))]) for t, plan in enumerate(plans)]


def _predict(subject: Subject, model: Any, text: Text, window: Window) -> Tensor:
    """Logits of a window, with the experts that are to be left out left out."""
    how = subject.adapt_experts
    if how is None:
        return predict(model, text, window)
    with model.coterie.adapt_experts(how) as adaptation:
        run = predict_in_steps if adaptation.settings.by_salience else predict
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

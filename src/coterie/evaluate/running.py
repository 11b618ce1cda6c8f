"""Runs a model, and the full one beside it, over texts, window by window."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from coterie.cluster.spreading import check_spreading
from coterie.engine.alteration import Alteration
from coterie.errors import UsageError
from coterie.evaluate.asked import Asked
from coterie.evaluate.confidence import block_starts
from coterie.evaluate.continuations import compare_continuations
from coterie.evaluate.evaluation import Continuations, Evaluation, ProgressCallback
from coterie.evaluate.exact_match import match
from coterie.evaluate.greedy import Prompt, Prompted
from coterie.evaluate.headers import versions
from coterie.evaluate.journal import Continued, Journal
from coterie.evaluate.measuring import Run
from coterie.evaluate.media import MediaFile, MediumTask
from coterie.evaluate.planning import check_length, input_tokens, steps, tokenise
from coterie.evaluate.quality import Quality, measure
from coterie.evaluate.reference import Reference
from coterie.evaluate.scores import TokenScores
from coterie.evaluate.subject import Subject
from coterie.evaluate.tasks import PromptTask, WindowTask
from coterie.evaluate.texts import Text
from coterie.evaluate.windows import plan_windows
from coterie.files.naming import model_path
from coterie.files.text import read_text
from coterie.spec import DEFAULT_POLICY, AdaptiveExperts, Missing
from coterie.spec.opening import Opening


def evaluate(
    model: str | Path,
    texts: Sequence[str | Path] = (),
    *,
    against: str | Path | None = None,
    reference: str | Path | None = None,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    continuations: int | None = None,
    continuation_tokens: int | None = None,
    prompt_tokens: int | None = None,
    exact_match: Sequence[str | Path] = (),
    answer_tokens: int | None = None,
    media: Sequence[MediaFile] = (),
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
    ray: str | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Measures how well a model predicts texts, and how far it is from the full model.

    Both models are open at once, under one budget, and read a window at a time; of its logits only a few numbers per
    token are kept. With ``reference`` the full one comes first and alone, and its logits are kept. Beside the models
    this takes ``models × context × vocabulary × 4`` bytes, and 64 MiB. Which experts are in memory changes no figure,
    unless ``drop_cold`` is given.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``"bundled"``. Of a whole omni model its thinker is used.
        texts: UTF-8 files. There may be none if there are questions, sounds or pictures.
        against: The model to compare with: usually a lossless store or checkpoint of the same one, with all experts.
        reference: A directory that keeps the logits of ``against``, compressed without loss. What is not there is
            computed, by that model alone; then ``model`` is compared with what was kept. So both may take the whole
            budget, and several models are compared with logits that were computed once. If it is interrupted, it goes
            on where it was.
        context: Input tokens of a window; default: 512, or what the models were made for if that is less.
        stride: Predictions of a window; default: as many as inputs. A smaller one gives each token more context, and
            costs as many times the work. See :func:`plan_windows`.
        limit: The most predictions of each text.
        continuations: So many prompts of each text are continued greedily, by the model and by ``against``, and the
            continuations are compared. Needs sacrebleu.
        continuation_tokens: The most new tokens of each; default: 64.
        prompt_tokens: Tokens of each prompt; default: 64.
        exact_match: Files of questions about sounds, pictures and texts, each with the right answer, as JSON lines:
            ``{"audio": "bird.wav", "text": "bird"}``, with ``image`` or ``prompt`` instead or beside. Both models
            answer greedily.
        answer_tokens: The most tokens of an answer; default: 32.
        media: Sounds and pictures. ``against`` answers each greedily, without a
            question, and both models then predict its answer. So the divergence is that of what is said about them.
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
        ray: Address of a Ray cluster, such as ``"10.0.0.1:6379"``, ``"auto"`` or ``"local"``: its workers compute, each
            with the models and within ``memory``. The figures are those of this process, to the last bit. Not with
            ``drop_cold``.
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
        reference=reference,
        context=context,
        stride=stride,
        limit=limit,
        asked=Asked(
            continuations=continuations,
            continuation_tokens=continuation_tokens,
            prompt_tokens=prompt_tokens,
            exact_match=tuple(exact_match),
            answer_tokens=answer_tokens,
            media=tuple(media),
        ),
        adapt_experts=adapt_experts,
        journal=journal,
        ray=ray,
        progress=progress,
    )


def evaluate_opening(
    model: str | Path,
    texts: Sequence[str | Path],
    opening: Opening,
    *,
    against: str | Path | None = None,
    reference: str | Path | None = None,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    asked: Asked | None = None,
    adapt_experts: str | AdaptiveExperts | None = None,
    alteration: Alteration | None = None,
    in_steps: bool = False,
    journal: str | Path | None = None,
    ray: str | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """:func:`evaluate`, told how the models are opened in one piece.

    Args:
        model: As there, like all that is not described here.
        texts: As there.
        opening: How the models are opened.
        against: As there.
        reference: As there.
        context: As there.
        stride: As there.
        limit: As there.
        asked: What both models are asked beside the texts.
        adapt_experts: As there.
        alteration: What ``model`` has instead of what is stored.
        in_steps: Whether tokens are computed one by one though the output does not depend on what was read before: then
            it is told what is read.
        journal: As there.
        ray: As there; not with ``in_steps`` either.
        progress: As there.
    """
    opening.check()
    asked = asked or Asked()
    _check_material(texts, asked, {"context": context, "stride": stride, "limit": limit})
    asked.check(texts=bool(texts), compared=against is not None)
    if reference is not None and against is None:
        raise UsageError(
            "A reference keeps the logits of the full model, and none is named.", advice="Name it: against."
        )
    if isinstance(adapt_experts, str):
        AdaptiveExperts.of(adapt_experts, 1)  # an unknown name is told before a model is opened
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1 token, not {limit}.", got=limit)
    if ray is not None:
        check_cluster(opening, in_steps=in_steps)
    if in_steps or opening.drop_cold is not None:
        # What is prefetched depends on how fast the disk is, and then the result would, too.
        opening = replace(opening, prefetch="off")
    contents = [(str(path), read_text(path, filled=True)) for path in texts]
    own, other = _with_rate(opening, model, against)
    subject = Subject(path=model, opening=own, adapt_experts=adapt_experts, alteration=alteration, in_steps=in_steps)
    full = None
    if against is not None:
        full = Subject(
            path=against,
            opening=replace(other, missing=None, source=None, experts_per_token=None, drop_cold=None, revision=None),
        )
    inputs = input_tokens(subject, full, context)
    tokenised = tokenise(subject, full, contents, limit)
    room, step = steps(tokenised, inputs, stride)
    plans = [plan_windows(len(text.ids), room, step) for text in tokenised]
    windows = [
        WindowTask(key=(t, w), text=text, window=window, in_order=subject.in_order)
        for t, (text, plan) in enumerate(zip(tokenised, plans, strict=True))
        for w, window in enumerate(plan)
    ]
    media = asked.answered(subject.processors)
    answered = [
        MediumTask(key=(len(tokenised) + d, m), medium=medium, subject=subject, full_subject=full)
        for d, domain in enumerate(media)
        for m, medium in enumerate(domain)
        if full is not None
    ]
    prompts = asked.prompts(tokenised)
    questions = asked.questions(subject.processors) if asked.exact_match else []
    prompted: list[Prompted] = [*prompts, *questions]
    followed = [*prompted, *(task.medium for task in answered)]
    check_length(subject, full, followed)
    longest = max([inputs if windows else 0, *(task.medium.length for task in answered)])
    with ExitStack() as stack:
        record = None
        if journal is not None:
            header = _header(subject, full, tokenised, inputs, step) | _of_media(answered)
            record = stack.enter_context(Journal(journal, header))
        kept = None
        if reference is not None and full is not None:
            of_full = _reference_header(full, tokenised, inputs, step, in_steps=subject.in_order)
            kept = Reference(reference, of_full | _of_media(answered))
        run = Run(
            subject,
            full,
            [*windows, *answered],
            [PromptTask(prompt=prompt, subject=subject, full_subject=full) for prompt in prompted],
            inputs=longest,
            length=max([longest, *(one.length for one in followed)]),
            journal=record,
            kept=kept,
            ray=ray,
            progress=progress,
        )
        run.finish()
    found, said, (reads, full_reads) = run.scores(), run.continuations(), run.reads()
    scores = [TokenScores.join(found[t]) for t in range(len(tokenised))]
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
        calibrated_on=subject.calibrated_on(tokenised),
        texts=tuple(
            measure(text.name, [one], [begins]) for text, one, begins in zip(tokenised, scores, starts, strict=True)
        ),
        total=measure("all", scores, starts) if windows else None,
        continuations=_compared(subject, prompts, said[: len(prompts)]) if prompts else None,
        media=tuple(_answers(domain[0].file.name, found[len(tokenised) + d]) for d, domain in enumerate(media)),
        exact_match=match(subject.tokenizer, questions, said[len(prompts) :], compared=full is not None),
    )


def check_cluster(opening: Opening, *, in_steps: bool) -> None:
    """Refuses what workers of a cluster cannot do.

    Args:
        opening: How models are opened.
        in_steps: Whether tokens are computed one by one, in order.

    Raises:
        MissingPackageError: If Ray is not installed.
        UsageError: If tokens have to be computed in order, or nothing says what a worker may take.
    """
    check_spreading(opening)
    if in_steps or opening.drop_cold is not None:
        raise UsageError(
            "What is read, or left out with drop_cold, depends on what was read before: one process computes all, in "
            "order.",
            advice="Leave the cluster out.",
        )


def _check_material(texts: Sequence[str | Path], asked: Asked, of_texts: Mapping[str, int | None]) -> None:
    if texts:
        return
    if not asked.exact_match and not asked.media:
        raise UsageError("There is no text to evaluate with.", advice="Name one or more UTF-8 files, or questions.")
    said = [name for name, value in of_texts.items() if value is not None]
    if said:
        raise UsageError(f"{said[0]} is about texts, and there is none.", advice="Name one or more UTF-8 files.")


def _answers(name: str, scores: Sequence[TokenScores]) -> Quality:
    """The figures of sounds or pictures, which are independent of each other."""
    return measure(name, [TokenScores.join(scores)], [block_starts([len(one.loss) for one in scores], 1)])


def _of_media(tasks: Sequence[MediumTask]) -> dict[str, Any]:
    """What a header says of sounds and pictures; nothing where there are none."""
    return {"media": [[*task.key, task.medium.digest] for task in tasks]} if tasks else {}


def _compared(subject: Subject, prompts: Sequence[Prompt], said: Sequence[Continued]) -> Continuations:
    found = [(one.ids, one.full_ids or ()) for one in said]
    return compare_continuations(subject.tokenizer, prompts, found)


def _reference_header(
    full: Subject, texts: Sequence[Text], inputs: int, step: int, *, in_steps: bool
) -> dict[str, Any]:
    """What must be equal for logits of the full model to be the same."""
    return {
        "model": full.fingerprint,
        "texts": _digests(texts),
        "context": inputs,
        "stride": step,
        "component": full.opening.component,
        "in_steps": in_steps,
        "threads": full.opening.threads,
        "versions": versions(),
    }


def _digests(texts: Sequence[Text]) -> list[str]:
    return [hashlib.sha256(repr((text.prefix, text.ids)).encode()).hexdigest() for text in texts]


def _with_rate(opening: Opening, model: str | Path, against: str | Path | None) -> tuple[Opening, Opening]:
    """How each of two models is opened: one that is here needs no limited rate where the other is on the Hub."""
    unlimited = replace(opening, max_rate=None)
    if against is None or opening.max_rate is None:
        return opening, unlimited
    here, other_here = model_path(model).is_dir(), model_path(against).is_dir()
    needless = here and not other_here and opening.missing != "fetch"
    return unlimited if needless else opening, unlimited if other_here else opening


def _header(subject: Subject, full: Subject | None, texts: Sequence[Text], inputs: int, step: int) -> dict[str, Any]:
    """What must be equal for the scores of two runs to belong together."""
    return {
        "model": subject.fingerprint,
        "against": None if full is None else full.fingerprint,
        "texts": _digests(texts),
        "context": inputs,
        "stride": step,
        "missing": subject.opening.missing,
        "experts_per_token": subject.opening.experts_per_token,
        "drop_cold": subject.opening.drop_cold,
        "cache": subject.cache_settings if subject.in_order else None,
        "adapt_experts": None if subject.adapt_experts is None else str(subject.adapt_experts),
        "component": subject.opening.component,
        "versions": versions(),
    }

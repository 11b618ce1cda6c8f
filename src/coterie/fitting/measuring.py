"""What a fit measures: how far its stores are from the full model, and how fast the one is that was wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coterie import bench
from coterie.errors import MemoryBudgetError, StoreError
from coterie.evaluate import Evaluation, Quality, evaluate
from coterie.evaluate.evaluation import ProgressCallback
from coterie.evaluate.paired import PairedScores
from coterie.evaluate.questions import DEFAULT_ANSWER_TOKENS
from coterie.extraction import ProgressCallback as BytesCallback
from coterie.fitting.making import Source
from coterie.fitting.predicting import Scored
from coterie.fitting.report import DomainFigures, Evaluated, SpeedFacts, Verified
from coterie.fitting.request import FitRequest
from coterie.generation.opened import OpenModel
from coterie.inspection import verify
from coterie.planner import Machine, plan
from coterie.spec import format_bytes
from coterie.spec.defaults import Missing
from coterie.spec.opening import Opening
from coterie.survey import Material
from coterie.survey.answering import media_files, media_name

ALL = "all"
_PROMPT_TOKENS, _NEW_TOKENS = 64, 32
"""Of the generations whose speed is measured: as `coterie bench` has it."""
_MOST_SHOWN = 3
"""Problems of a store that an error names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journals:
    """Where the scores of each evaluation are, window by window.

    Attributes:
        store: Of the store.
        uniform: Of the uniform store.
        pruned: Of the pruned model before its experts had fewer bits.
    """

    store: Path
    uniform: Path
    pruned: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Journals:
        """Those of a fit whose work is there."""
        store, uniform, pruned = (folder / f"{name}.windows.jsonl" for name in ("store", "uniform", "pruned"))
        return cls(store=store, uniform=uniform, pruned=pruned)


def verify_store(source: Source, store: Path, progress: BytesCallback | None = None) -> Verified:
    """Verifies a store, against what it was made of if that is a checkpoint.

    Raises:
        StoreError: If anything is wrong with it.
    """
    request = source.request
    found = verify(
        store,
        against=source.checkpoint,
        revision=request.revision,
        offline=request.offline,
        progress=progress,
    )
    if not found.ok:
        listed = "; ".join(f"{one.file}, {one.place}: {one.message}" for one in found.problems[:_MOST_SHOWN])
        raise StoreError(
            f"The store is not what was to be written: {listed}.",
            advice=f"Remove {store}, and give the same command again. If it happens again, examine memory and disk.",
            path=store,
        )
    return Verified(
        files=found.files,
        experts=found.experts,
        absent_experts=found.absent_experts,
        compared_experts=found.compared_experts,
        against=found.against,
    )


def evaluate_store(
    source: Source,
    store: Path,
    texts: Mapping[str, Path],
    media: Sequence[Material],
    *,
    missing: Missing | None,
    kept: Path,
    journal: Path,
    progress: ProgressCallback | None,
) -> Evaluation:
    """Evaluates a store on texts, sounds, pictures and questions beside the full model, whose logits are kept.

    Args:
        source: What it was made of.
        store: The store.
        texts: Domain → text.
        media: Sounds and pictures.
        missing: What is done about experts that were left out.
        kept: Where the full model's logits are kept.
        journal: Where the scores of finished windows are.
        progress: Told after every window.
    """
    request = source.request
    found = evaluate(
        store,
        list(texts.values()),
        against=source.full,
        reference=kept,
        limit=request.limit,
        exact_match=request.exact_match,
        media=media_files(_as_many(media, request.limit)),
        memory=request.work_nbytes,
        component=request.component,
        missing=missing,
        offline=request.offline,
        threads=request.threads,
        journal=journal,
        ray=request.ray,
        progress=progress,
    )
    # Where the texts are for a while is nobody's business later.
    named = (replace(text, name=domain) for domain, text in zip(texts, found.texts, strict=True))
    return replace(found, texts=tuple(named))


def _as_many(media: Sequence[Material], limit: int) -> Iterator[Material]:
    """As many sounds and pictures of each domain as have so many tokens in their answers, at most."""
    counts: Counter[str] = Counter()
    for one in media:
        name = media_name(one)
        counts[name] += 1
        if counts[name] <= max(1, limit // DEFAULT_ANSWER_TOKENS):
            yield one


def scored_in_order(texts: Mapping[str, Path], media: Sequence[Material]) -> list[Scored]:
    """What is scored, in the order in which it is evaluated.

    Args:
        texts: Domain → text.
        media: Sounds and pictures.
    """
    found = [Scored(name=domain, domain=domain, kind="text") for domain in texts]
    answered = {media_name(one): Scored(name=media_name(one), domain=one.domain, kind=one.kind) for one in media}
    return [*found, *answered.values()]


def side_by_side(
    request: FitRequest,
    scored: Sequence[Scored],
    found: Evaluation,
    uniform: Evaluation | None,
    journals: Journals,
    expected: Mapping[str, float],
    pruned: Evaluation | None = None,
) -> Evaluated:
    """The figures of each domain, and of all of them together, beside the uniform store's.

    Args:
        request: What was asked for.
        scored: What was evaluated, in order, texts first.
        found: The store's evaluation.
        uniform: The uniform store's; None if there is none.
        journals: The journals of these evaluations.
        expected: Name → how much farther from the full model than the uniform store it should be: of a pruned model,
            what having fewer bits adds, as a share of that.
        pruned: The evaluation of the pruned model before its experts had fewer bits; None if nothing was pruned.
    """
    texts = [number for number, one in enumerate(scored) if one.kind == "text"]
    paired = None if uniform is None else PairedScores(journals.store, journals.uniform)
    alone = None if pruned is None else PairedScores(journals.store, journals.pruned)
    asked = [number for number, one in enumerate(scored) if one.domain in request.domains]
    named = " and ".join(scored[number].name for number in asked)

    def figures(name: str, numbers: list[int], quality: Quality | None) -> DomainFigures:
        beside = None if paired is None else paired.compare(name, numbers)
        kld = None if quality is None or quality.comparison is None else quality.comparison.kld
        if kld is None:
            assert beside is not None, "several domains are counted together where two stores are compared"
            kld = beside.kld
        return DomainFigures(
            domain=name,
            kind=scored[numbers[0]].kind,
            tokens=quality.tokens if quality is not None else sum(_all(found)[number].tokens for number in numbers),
            kld=kld,
            same_top=None if quality is None or quality.comparison is None else quality.comparison.same_top,
            predicted=None if uniform is None else _predicted(uniform, expected, scored, numbers, pruned),
            uniform=None if beside is None else beside.other_kld,
            beside=beside,
            pruned=None if alone is None else alone.compare(name, numbers).other_kld,
        )

    rows = [
        figures(one.name, [number], quality)
        for number, (one, quality) in enumerate(zip(scored, _all(found), strict=True))
    ]
    if len(asked) > 1 and asked != texts and paired is not None:
        rows.append(figures(named, asked, None))
    whole = scored[texts[0]].name
    if len(texts) > 1:
        rows.append(figures(ALL, texts, found.total))
        whole = ALL
    decisive = whole if not asked or asked == texts or paired is None else named
    return Evaluated(evaluation=found, uniform=uniform, figures=tuple(rows), decisive=decisive, pruned=pruned)


def _all(evaluation: Evaluation) -> tuple[Quality, ...]:
    """The figures of each text, and of the sounds and pictures of each domain."""
    return (*evaluation.texts, *evaluation.media)


def _predicted(
    uniform: Evaluation,
    expected: Mapping[str, float],
    scored: Sequence[Scored],
    numbers: Sequence[int],
    pruned: Evaluation | None,
) -> float | None:
    """The divergence that is expected of some texts together; None if nothing is of one of them.

    What pruning costs was measured, and what fewer bits add to it is expected to be as it is alone.
    """
    total = tokens = 0.0
    for number in numbers:
        text, ratio = _all(uniform)[number], expected.get(scored[number].name)
        if text.comparison is None or ratio is None:
            return None
        total += text.tokens * ratio * text.comparison.kld.value
        if pruned is not None and (alone := _all(pruned)[number].comparison) is not None:
            total += text.tokens * alone.kld.value
        tokens += text.tokens
    return total / tokens


def measure_speed(
    source: Source, store: Path, *, context: int, missing: Missing | None, machine: Machine | None
) -> SpeedFacts:
    """What the planner expects of a store under the budget, and what is measured.

    Args:
        source: What it was made of.
        store: The store.
        context: Tokens to provide for.
        missing: What is done about experts that were left out.
        machine: What was measured of this machine; None to measure it.

    Raises:
        MemoryBudgetError: If this process holds so much already that the model does not fit beside it.
    """
    request = source.request
    memory = request.memory_nbytes
    planned = plan(store, memory=memory, context=context, machine=machine, offline=request.offline).budgets[0]
    if planned.hit_rate is None:
        raise MemoryBudgetError(
            f"The store will not run in {format_bytes(memory)}, because {planned.why_not}.",
            budget=memory,
            minimum=planned.memory.minimum,
        )
    as_asked = Opening(memory=memory, offline=request.offline, threads=request.threads)
    opening = replace(as_asked, missing=missing, max_context=context)
    opened = OpenModel.open(str(store), opening)
    try:
        prompt = bench.prompt_of(opened.processors.tokenizer, min(_PROMPT_TOKENS, context // 2))
        new = min(_NEW_TOKENS, context - prompt.shape[1])
        cold, warm = (bench.measure(opened.model, prompt, new) for _ in range(2))
    finally:
        opened.runtime.close()
    return SpeedFacts(
        share=planned.share,
        hit_rate=planned.hit_rate,
        expected=None if planned.speed is None else planned.speed.tokens_per_second,
        cold=cold,
        warm=warm,
    )

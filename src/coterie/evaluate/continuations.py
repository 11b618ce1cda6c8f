"""Greedy continuations of a model beside those of the full model: the texts, and how alike they are.

BLEU (Papineni et al., "BLEU: a method for automatic evaluation of machine translation", ACL 2002) and chrF (Popović,
"chrF: character n-gram F-score for automatic MT evaluation", WMT 2015) are computed by sacrebleu (Post, "A call for
clarity in reporting BLEU scores", WMT 2018), whose signatures say how. The full model's text is the only reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.evaluate.confidence import Estimate, mean_estimate
from coterie.evaluate.evaluation import Continuation, Continuations, Likeness
from coterie.evaluate.greedy import Prompt, equal_tokens
from coterie.hf.tokenizer import decode_tokens
from coterie.spec import optional_package

DEFAULT_PROMPT_TOKENS = 64
DEFAULT_NEW_TOKENS = 64


def text_metrics() -> tuple[Any, Any]:
    """BLEU and chrF of sacrebleu, with its own settings: ``13a`` tokens, case, exponential smoothing; chrF2 of up to 6.

    Raises:
        MissingPackageError: If it is not installed.
    """
    metrics = optional_package("sacrebleu.metrics", "BLEU and chrF need", extra="evaluate")
    return metrics.BLEU(), metrics.CHRF()


def compare_continuations(
    tokenizer: Any, prompts: Sequence[Prompt], found: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Continuations:
    """Compares continuations of the same prompts.

    Args:
        tokenizer: That of both models.
        prompts: The prompts, text by text; at least one.
        found: For each, the tokens of the model and those of the full model.

    Raises:
        MissingPackageError: If sacrebleu is not installed.
    """
    samples = [_compare(tokenizer, prompt, *ids) for prompt, ids in zip(prompts, found, strict=True)]
    names = list(dict.fromkeys(sample.text for sample in samples))
    groups = [[sample for sample in samples if sample.text == name] for name in names]
    bleu, chrf = text_metrics()
    likenesses = [_likeness(name, [group], bleu, chrf) for name, group in zip(names, groups, strict=True)]
    total = _likeness("all", groups, bleu, chrf)
    return Continuations(
        prompt_tokens=prompts[0].tokens,
        new_tokens=prompts[0].new_tokens,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
        texts=tuple(likenesses),
        total=total,
        samples=tuple(samples),
    )


def _compare(tokenizer: Any, prompt: Prompt, ids: tuple[int, ...], full_ids: tuple[int, ...]) -> Continuation:
    def said(ids: Sequence[int]) -> str:
        return decode_tokens(tokenizer, ids, skip_special_tokens=True)

    return Continuation(
        text=prompt.text.name,
        start=prompt.start,
        prompt=said(prompt.ids),
        following=said(prompt.following_ids),
        full=said(full_ids),
        model=said(ids),
        full_tokens=len(full_ids),
        tokens=len(ids),
        equal_tokens=equal_tokens(ids, full_ids),
        identical=ids == full_ids,
    )


def _likeness(name: str, groups: Sequence[Sequence[Continuation]], bleu: Any, chrf: Any) -> Likeness:
    samples = [sample for group in groups for sample in group]
    starts = [np.arange(len(group), dtype=np.intp) for group in groups]
    texts, full = [sample.model for sample in samples], [[sample.full for sample in samples]]

    def mean(what: str) -> Estimate:
        return mean_estimate([np.array([getattr(one, what) for one in group], float) for group in groups], starts)

    return Likeness(
        name=name,
        prompts=len(samples),
        equal_tokens=mean("equal_tokens").within(0.0),
        identical=mean("identical").within(0.0, 1.0),
        bleu=bleu.corpus_score(texts, full).score,
        chrf=chrf.corpus_score(texts, full).score,
    )

"""Compares a streamed model with another one, logit by logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from coterie.generation import sequence
from coterie.generation.steps import generated
from coterie.hf.generation_steps import last_logits, one_by_one, prepare

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A prompt and what follows it.

    Attributes:
        name: For messages.
        inputs: The prompt's inputs, a batch of one.
        token_ids: Tokens after the prompt.
    """

    name: str
    inputs: BatchFeature
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactness:
    """How far a streamed model is from stock transformers.

    Attributes:
        cases: Prompts compared.
        sequence_logits: Logits compared over whole sequences, computed at once.
        decoded_logits: Logits compared while decoding greedily, token by token.
        decoded_tokens: Tokens decoded greedily by each.
        same_tokens: Whether both decoded the same ones.
        max_difference: Greatest absolute difference of two logits.
        identical: Whether every logit has the same bits, and every token is the same.
        different: Names of the cases in which something differs.
    """

    cases: int
    sequence_logits: int
    decoded_logits: int
    decoded_tokens: int
    same_tokens: bool
    max_difference: float
    identical: bool
    different: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How like the full model another one predicts, token by token, both given the same text before.

    Attributes:
        tokens: Predictions compared.
        kl: Mean Kullback-Leibler divergence from the full model's distribution, in nats per token.
        same_top: Share of tokens for which both find the same one most probable.
    """

    tokens: int
    kl: float
    same_top: float


@torch.inference_mode()
def sequence_logits(model: PreTrainedModel, cases: Sequence[Case]) -> list[torch.Tensor]:
    """The logits of each case's prompt and continuation, run at once: [tokens, vocabulary] each."""
    results = []
    for case in cases:
        inputs = dict(case.inputs.to(model.dtype))
        following = torch.tensor([case.token_ids], dtype=torch.int64)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], following], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        results.append(model(**inputs, use_cache=False).logits[0])
    return results


def compare_exactly(
    streamed: PreTrainedModel, stock: PreTrainedModel, cases: Sequence[Case], *, greedy_tokens: int
) -> tuple[Exactness, list[torch.Tensor]]:
    """Runs both models over the same cases, whole sequences and greedy decoding, and compares every logit's bits.

    Args:
        streamed: The model to be proved.
        stock: The one that it must equal.
        cases: What to run.
        greedy_tokens: How many tokens to decode after each prompt (fewer where the model ends).

    Returns:
        The comparison, and the streamed model's logits of the whole sequences.
    """
    logits = sequence_logits(streamed, cases)
    sequence_count = decoded_count = token_count = 0
    same_tokens, greatest = True, 0.0
    different = []
    for case, ours, theirs in zip(cases, logits, sequence_logits(stock, cases), strict=True):
        our_ids, our_steps = _decode(streamed, case, greedy_tokens)
        their_ids, their_steps = _decode_in_transformers(stock, case, greedy_tokens)
        sequence_count += ours.numel()
        decoded_count += our_steps.numel()
        token_count += our_ids.numel()
        same_ids = torch.equal(our_ids, their_ids)
        same_tokens &= same_ids
        steps = min(len(our_steps), len(their_steps))
        greatest = max(
            greatest, _greatest_difference(ours, theirs), _greatest_difference(our_steps[:steps], their_steps[:steps])
        )
        if not (same_ids and torch.equal(ours, theirs) and torch.equal(our_steps, their_steps)):
            different.append(case.name)
    return (
        Exactness(
            cases=len(cases),
            sequence_logits=sequence_count,
            decoded_logits=decoded_count,
            decoded_tokens=token_count,
            same_tokens=same_tokens,
            max_difference=greatest,
            identical=not different,
            different=tuple(different),
        ),
        logits,
    )


def likeness(model: PreTrainedModel, cases: Sequence[Case], full: Sequence[torch.Tensor]) -> Likeness:
    """Compares the model's predictions with the full model's logits of the same cases."""
    tokens, divergence, same = 0, 0.0, 0
    for ours, theirs in zip(sequence_logits(model, cases), full, strict=True):
        log_p, log_q = theirs.float().log_softmax(-1), ours.float().log_softmax(-1)
        divergence += float((log_p.exp() * (log_p - log_q)).sum())
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        tokens += len(theirs)
    return Likeness(tokens=tokens, kl=divergence / tokens, same_top=same / tokens)


def _decode(model: PreTrainedModel, case: Case, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens of greedy decoding, and their logits [tokens, vocabulary] as the model gave them."""
    if not one_by_one(model, model.generation_config):
        return _decode_in_transformers(model, case, tokens)
    logits: list[torch.Tensor] = []
    prepared = prepare(model, **case.inputs.to(model.dtype), do_sample=False, max_new_tokens=tokens)
    done = generated(
        sequence.Sequence(prepared, keep=lambda outputs: logits.append(last_logits(outputs, prepared.ids)))
    )
    return done.new_ids, torch.cat(logits)


def _decode_in_transformers(model: PreTrainedModel, case: Case, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in transformers' own loop."""
    result = model.generate(
        **case.inputs.to(model.dtype),
        do_sample=False,
        max_new_tokens=tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return result.sequences[0, case.inputs["input_ids"].shape[1] :], torch.cat(result.logits)


def _greatest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs.float()).abs().max())

"""Several answers to one prompt, which is computed once: each is the one that it would be alone."""

from __future__ import annotations

import pytest
import torch

from coterie.generation.draws import Draws
from coterie.generation.prefixes import Prefixes
from coterie.generation.sequence import Sequence
from coterie.generation.steps import Steps, generated
from coterie.hf.generation_steps import last_logits, prepare_in_pieces
from coterie.passes.current import Request
from zoo import ZOO

PIECE = 16


class Choice:
    """One of the answers, and the logits of its steps."""

    def __init__(self, model, prompt, seed, prefixes, *, salt="", ends=True, **options) -> None:
        self.logits: list[torch.Tensor] = []
        wishes = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5} | options
        prepared = prepare_in_pieces(model, prompt, **wishes)
        first, logits = prepared.ids, self.logits
        self.sequence = Sequence(
            prepared,
            request=Request(),
            draws=Draws(seed),
            keeper=prefixes.begin(prepared, salt, ends=ends),
            piece=prefixes.piece,
            keep=lambda outputs: logits.append(last_logits(outputs, first)),
        )

    def is_as(self, other) -> bool:
        return torch.equal(self.sequence.ids, other.sequence.ids) and all(
            torch.equal(ours, theirs) for ours, theirs in zip(self.logits, other.logits, strict=True)
        )


def prompt_of(name: str, length: int = 40):
    return dict(ZOO[name].inputs(seed=3, length=length))


def alone(model, prompt, seed, **options):
    choice = Choice(model, prompt, seed, Prefixes(0, piece=PIECE), ends=False, **options)
    generated(choice.sequence)
    return choice


def passes_of(model) -> int:
    return sum(model.coterie.stats().prefill_tokens.values())


def compare(model, prompt, *, length: int, computed: int | None = None, **options) -> None:
    """Four answers at once are those of each alone, and the prompt has been computed once."""
    computed = length if computed is None else computed
    expected = [alone(model, prompt, seed, **options) for seed in range(4)]
    prefixes, steps = Prefixes(1 << 30, piece=PIECE), Steps()
    before = passes_of(model)
    choices = [Choice(model, prompt, seed, prefixes, **options) for seed in range(3)]
    for one in choices:
        steps.add(one.sequence)
    while steps.going:
        steps.step()
    # And one that begins when the others are over.
    choices.append(Choice(model, prompt, 3, prefixes, **options))
    generated(choices[-1].sequence)
    for choice, other in zip(choices, expected, strict=True):
        choice.sequence.check()
        assert choice.is_as(other)
    assert len({tuple(one.sequence.new_ids.tolist()) for one in choices}) > 1
    assert passes_of(model) - before == computed
    assert choices[0].sequence.reused == 0
    assert sum(one.sequence.reused for one in choices[1:]) == 4 * length - computed
    assert choices[3].sequence.reused == length
    assert (prefixes.counts.prompts, prefixes.counts.hits, prefixes.counts.tokens) == (4, 3, 4 * length - computed)


@pytest.mark.parametrize("length", [5, 16, 40, 48])
def test_a_prompt_is_computed_once(length, zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16), expert_memory="50%")
    compare(model, prompt_of("qwen3_moe", length), length=length)


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3", "jamba", "qwen3_next", "minimax"])
def test_other_families(name, zoo_checkpoint, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    model = open_model(zoo_checkpoint(name, torch.bfloat16), expert_memory="50%")
    compare(model, prompt_of(name), length=40)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_memory_that_was_laid_out_ahead(name, zoo_checkpoint, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    model = open_model(zoo_checkpoint(name, torch.bfloat16), expert_memory="50%")
    # Its pieces are not kept: who begins at the same time goes on from the end only.
    computed = 16 + 16 + 8 + 2 * (16 + 16)
    compare(model, prompt_of(name), length=40, computed=computed, cache_implementation="static", disable_compile=True)


def test_whoever_comes_alone_keeps_no_end_and_finds_none(zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16), expert_memory="50%")
    prefixes = Prefixes(1 << 30, piece=PIECE)
    for salt, ends, reused in (("", False, 0), ("", True, 32), ("", False, 32), ("", True, 40), ("anna", True, 0)):
        choice = Choice(model, prompt_of("qwen3_moe"), 1, prefixes, salt=salt, ends=ends)
        generated(choice.sequence)
        assert choice.sequence.reused == reused


def test_tokens_that_are_not_looked_at_make_another_prompt(zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16), expert_memory="50%")
    prefixes = Prefixes(1 << 30, piece=PIECE)
    prompt = prompt_of("qwen3_moe")
    mask = torch.ones_like(prompt["input_ids"])
    generated(Choice(model, prompt, 1, prefixes).sequence)
    mask[0, :3] = 0
    hidden = Choice(model, prompt | {"attention_mask": mask}, 1, prefixes)
    generated(hidden.sequence)
    assert hidden.sequence.reused == 0
    assert hidden.is_as(alone(model, prompt | {"attention_mask": mask}, 1))


def test_one_that_ends_in_the_middle_of_the_prompt_leaves_the_others_theirs(zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16), expert_memory="50%")
    prompt = prompt_of("qwen3_moe")
    prefixes, steps = Prefixes(1 << 30, piece=PIECE), Steps()
    choices = [Choice(model, prompt, seed, prefixes) for seed in range(3)]
    for one in choices:
        steps.add(one.sequence)
    steps.step()
    steps.remove(choices[0].sequence)
    while steps.going:
        steps.step()
    assert all(one.is_as(alone(model, prompt, seed)) for seed, one in enumerate(choices) if seed)


def test_without_room_each_computes_it(zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16), expert_memory="50%")
    prompt = prompt_of("qwen3_moe")
    prefixes = Prefixes(100, piece=PIECE)
    for seed in range(2):
        choice = Choice(model, prompt, seed, prefixes)
        generated(choice.sequence)
        assert choice.sequence.reused == 0
        assert choice.is_as(alone(model, prompt, seed))

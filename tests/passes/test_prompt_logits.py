"""The logits of a whole prompt, some rows at a time: those that the model computes at once, of every class."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.errors import UnsupportedError
from coterie.generation.sequence import Sequence
from coterie.generation.steps import generated
from coterie.hf.generation_steps import one_by_one, prepare
from coterie.hf.last_logits import output_head
from coterie.passes.prompt_logits import PromptLogits
from coterie.spec import LAST_POSITIONS
from zoo import MATRIX, ZOO

VARIANTS = {**MATRIX, **ZOO}
LENGTH = 150


def named(*parts: str) -> list[str]:
    return sorted(name for name in VARIANTS if any(part in name for part in parts) and not VARIANTS[name].why_not)


def read(model: Any, ids: torch.Tensor, **more: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Tokens, and the logits of the prompt as they were handed on."""
    told: list[torch.Tensor] = []
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 3}
    prepared = prepare(model, **options, **more)
    hearing = PromptLogits(model, prepared.kwargs, lambda rows: told.append(rows.clone()))
    return generated(Sequence(prepared, prompt_logits=hearing)).ids, told


def check(model: Any) -> None:
    ids = torch.arange(LENGTH)[None] * 7 % 57 + 3
    alone = generated(
        Sequence(prepare(model, input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=3))
    ).ids
    tokens, told = read(model, ids)
    assert torch.equal(tokens, alone)
    assert [len(rows) for rows in told] == [LAST_POSITIONS, LENGTH - LAST_POSITIONS] or max(map(len, told)) < 2 * 64
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits[0]
    torch.testing.assert_close(torch.cat(told).float(), whole.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["qwen3_moe", *named("granite")[:1], *named("gemma4")[:1]])
def test_they_are_those_of_one_pass(zoo_checkpoint, open_model, name: str) -> None:
    check(open_model(zoo_checkpoint(name, torch.float32)))


@pytest.mark.matrix
@pytest.mark.parametrize("name", sorted(name for name, one in VARIANTS.items() if not one.why_not))
def test_of_every_class(zoo_checkpoint, open_model, name: str) -> None:
    model = open_model(zoo_checkpoint(name, torch.float32))
    model = getattr(model, "thinker", model)
    config = model.generation_config
    if model.config.is_encoder_decoder or output_head(model) is None or not one_by_one(model, config):
        pytest.skip("it does not generate, or in a way of its own")
    check(model)


def test_a_head_whose_logits_are_changed_afterwards_is_refused(zoo_checkpoint, open_model) -> None:
    model = open_model(zoo_checkpoint("qwen3_moe", torch.float32))

    def change(_: Any, args: Any, outputs: Any) -> None:
        outputs.logits = outputs.logits * 3

    model.register_forward_hook(change)
    with pytest.raises(UnsupportedError) as caught:
        read(model, torch.arange(20)[None] + 3)
    assert caught.value.facts["field"] == "prompt_logprobs"

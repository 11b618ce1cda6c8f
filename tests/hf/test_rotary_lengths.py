"""Frequencies that go by the longest sequence are each one's own, and rows that would share them are not joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from coterie.generation.steps import Steps
from coterie.hf.rotary_lengths import goes_by_length
from generation.beside import Beside

SIZES = {
    "vocab_size": 100, "hidden_size": 64, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 3,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "eos_token_id": None,
    "pad_token_id": 0, "max_position_embeddings": 12,
}  # fmt: skip


def model(**rope: Any) -> Any:
    torch.manual_seed(0)
    made = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, rope_parameters={"rope_theta": 10000.0, **rope})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4.0)  # so that it says more than one thing
    return made


@pytest.mark.parametrize("lengths", [(30, 14, 4), (4, 14, 30)])
def test_sequences_longer_than_the_model_was_made_for_are_as_alone(lengths) -> None:
    def one(length: int) -> Beside:
        return Beside(dynamic, 0, inputs={"input_ids": torch.arange(3, 3 + length)[None]})

    dynamic = model(rope_type="dynamic", factor=2.0)
    alone = [one(length).alone() for length in lengths]
    assert one(14).alone().is_as(alone[1])
    steps, beside = Steps(), [one(length) for length in lengths]
    for each in beside:
        steps.add(each.sequence)
    while steps.going:
        steps.step()
    assert all(each.is_as(other) for each, other in zip(beside, alone, strict=True))


def test_only_what_goes_by_length_does() -> None:
    for kind, extra in (("default", {}), ("linear", {"factor": 2.0})):
        assert not any(map(goes_by_length, model(rope_type=kind, **extra).modules()))
    assert sum(map(goes_by_length, model(rope_type="dynamic", factor=2.0).modules())) == 1

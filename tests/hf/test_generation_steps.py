"""What generate has prepared is handed over as it is, and it is told which ways of generating are not in steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, GenerationMixin, Qwen3MoeForCausalLM

from coterie.hf.caches import caches_in
from coterie.hf.generation_steps import choose, join_inputs, last_logits, one_by_one, prepare, prompt_length, row_of
from zoo import MATRIX, ZOO


@pytest.fixture(scope="module")
def model():
    return ZOO["qwen3_moe"].build(torch.float32).eval()


def test_what_is_prepared_is_one_request_with_a_cache_of_its_own(model) -> None:
    inputs = ZOO["qwen3_moe"].inputs(seed=1, length=9)
    for options in ({}, {"cache_implementation": "static"}):
        made = [prepare(model, **inputs, max_new_tokens=3, top_k=7, do_sample=True, **options) for _ in range(2)]
        first, second = (caches_in(one.kwargs.values()) for one in made)
        assert (len(first), len(second)) == (1, 1)
        assert first[0] is not second[0]
    assert torch.equal(made[0].ids, inputs["input_ids"])
    assert made[0].model is model
    assert (made[0].config.top_k, made[0].config.max_length, made[0].kwargs["use_cache"]) == (7, 12, True)
    assert "TopKLogitsWarper" in {type(one).__name__ for one in made[0].processors}
    assert not made[0].criteria(inputs["input_ids"], None)
    assert prompt_length(made[0]) == 9


def test_a_prompt_may_be_embeddings(model) -> None:
    ids = ZOO["qwen3_moe"].inputs(seed=1, length=9)["input_ids"]
    given = model.get_input_embeddings()(ids).detach()
    made = prepare(model, inputs_embeds=given, attention_mask=torch.ones_like(ids), max_new_tokens=3)
    assert (made.ids.shape, prompt_length(made)) == ((1, 0), 9)


def test_of_a_model_with_an_encoder_the_decoders_tokens_count() -> None:
    variant = MATRIX["switch_transformers"]
    model = variant.build(torch.float32).eval()
    inputs = {name: variant.inputs(seed=2)[name] for name in ("input_ids", "attention_mask")}
    made = prepare(model, **inputs, max_new_tokens=3)
    assert (made.ids.shape, prompt_length(made)) == ((1, 1), 1)


def test_a_search_over_beams_and_guesses_are_not_one_by_one(model, monkeypatch) -> None:
    assert one_by_one(model, GenerationConfig())
    assert one_by_one(model, GenerationConfig(do_sample=True, use_cache=False))
    for other in ({"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"token_healing": True}):
        assert not one_by_one(model, GenerationConfig(**other))
    assert not one_by_one(torch.nn.Linear(1, 1), GenerationConfig())
    monkeypatch.setattr(Qwen3MoeForCausalLM, "generate", lambda self, *args, **options: None)
    assert not one_by_one(model, GenerationConfig())


def test_a_loop_of_a_classs_own_is_left_to_it(model, monkeypatch) -> None:
    own = GenerationMixin._sample
    monkeypatch.setattr(Qwen3MoeForCausalLM, "_sample", lambda self, *args, **options: own(self, *args, **options))
    assert not one_by_one(model, GenerationConfig())


def test_logits_are_a_copy_of_the_last_ones() -> None:
    outputs = type("Output", (), {"logits": torch.rand(1, 4, 6)})()
    found = last_logits(outputs, torch.zeros(1, 4, dtype=torch.int64))
    assert torch.equal(found, outputs.logits[:, -1])
    found.zero_()
    assert outputs.logits[:, -1].any()


def test_a_token_is_the_first_of_the_likeliest_or_drawn() -> None:
    scores = torch.tensor([[0.0, 2.0, 2.0, -torch.inf]])
    assert choose(scores, sample=False).tolist() == [1]
    drawn = [choose(scores, sample=True).tolist() for _ in range(60)]
    assert {token for (token,) in drawn} == {0, 1, 2}


def decode_inputs(**others: Any) -> dict[str, Any]:
    cache = DynamicCache()
    return {"input_ids": torch.ones(1, 1).long(), "position_ids": torch.ones(1, 1).long(), "cache": cache} | others


def test_next_tokens_of_several_sequences_are_joined() -> None:
    whole = object()
    joined = join_inputs(
        [
            decode_inputs(use_cache=True, logits_to_keep=1, attention_mask=torch.ones(1, 5), pixel_values=None),
            decode_inputs(use_cache=True, logits_to_keep=1, image_grid_thw=torch.ones(1, 3), output_attentions=False),
        ],
        whole,
    )
    assert joined is not None
    assert joined.keys() == {"input_ids", "position_ids", "cache", "use_cache", "logits_to_keep"}
    assert (joined["cache"], joined["input_ids"].shape, joined["position_ids"].shape) == (whole, (2, 1), (2, 1))
    axes = {"position_ids": torch.ones(3, 1, 1)}
    joined = join_inputs([decode_inputs(**axes), decode_inputs(**axes)], whole)
    assert joined is not None
    assert joined["position_ids"].shape == (3, 2, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"attention_mask": torch.tensor([[0, 1, 1]])},
        {"attention_mask": torch.ones(1, 1, 1, 3)},
        {"position_ids": None},
        {"position_ids": torch.ones(3, 1, 1)},
        {"input_ids": None, "inputs_embeds": torch.ones(1, 1, 4)},
        {"logits_to_keep": 2},
        {"output_hidden_states": True},
        {"pixel_values": torch.ones(1, 3)},
        {"cache": None},
    ],
    ids=str,
)
def test_what_a_text_is_not_given_is_not_joined(other) -> None:
    plain = decode_inputs(logits_to_keep=1)
    assert join_inputs([plain, decode_inputs(logits_to_keep=1)], object()) is not None
    assert join_inputs([plain, decode_inputs(**{"logits_to_keep": 1} | other)], object()) is None


def test_a_row_is_what_a_pass_of_its_own_returns(model) -> None:
    ids = ZOO["qwen3_moe"].inputs(seed=1, length=6)["input_ids"]
    with torch.no_grad():
        outputs = model(torch.cat([ids, ids + 1]), use_cache=True, return_dict=True)
    own = DynamicCache()
    row = row_of(outputs, 1, own)
    assert type(row) is type(outputs)
    assert torch.equal(row.logits, outputs.logits[1:])
    assert caches_in([row]) == [own]

"""Exactly so many tokens, and when each came."""

import pytest
import torch
from transformers import CompileConfig

from coterie.bench import generate
from coterie.errors import UnsupportedError
from zoo import ZOO

BF16 = torch.bfloat16


@pytest.fixture
def model(zoo_store, open_model):
    return open_model(zoo_store("qwen3_moe", BF16))


def test_tokens_are_those_of_generate_and_every_one_has_a_time(model):
    prompt = ZOO["qwen3_moe"].inputs(seed=1)["input_ids"]
    counts = []
    tokens, times = generate(model, prompt, 5, on_token=counts.append)
    expected = model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert tokens == expected[0, prompt.shape[1] :].tolist()
    assert counts == [1, 2, 3, 4, 5]
    assert times.times == sorted(times.times)
    assert len(times.steps_s) == 4
    assert times.prefill_s + sum(times.steps_s) == pytest.approx(times.times[-1] - times.times[0])


@pytest.mark.parametrize("values", [{"prompt_lookup_num_tokens": 3}, {"compile_config": CompileConfig()}])
def test_what_does_not_come_token_by_token_is_not_measured(model, values):
    model.generation_config.update(**values)
    with pytest.raises(UnsupportedError, match=r"one token after the other .*generation_config\.json"):
        generate(model, ZOO["qwen3_moe"].inputs(seed=1)["input_ids"], 3)


def test_a_whole_omni_model_is_not_measured(zoo_checkpoint, open_model):
    model = open_model(zoo_checkpoint("qwen3_omni"))
    with pytest.raises(UnsupportedError, match="omni model, measure the thinker"):
        generate(model, ZOO["qwen3_moe"].inputs(seed=1)["input_ids"], 3)


def test_drawn_tokens_follow_the_seed_and_leave_the_random_state(model):
    prompt = ZOO["qwen3_moe"].inputs(seed=1)["input_ids"]
    state = torch.random.get_rng_state()
    drawn = [generate(model, prompt, 12, seed=seed)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.random.get_rng_state(), state)

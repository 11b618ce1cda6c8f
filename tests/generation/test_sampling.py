import pytest
from transformers import GenerationConfig

from coterie.errors import UsageError
from coterie.generation.grammar import Grammar
from coterie.generation.sampling import Sampling


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": 0, "greedy": False},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"seed": -2},
        {"max_new_tokens": -2},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"stop": ("",)},
        {"seed": 2**63},
        {"greedy": True, "top_k": 5},
        {"typical_p": 0},
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {5: 101}},
        {"logit_bias": {-1: 1}},
        {"logit_bias": dict.fromkeys(range(1025), 1.0)},
        {"min_new_tokens": -1},
        {"min_new_tokens": 9, "max_new_tokens": 8},
        {"stop_token_ids": (-1,)},
        {"stop_token_ids": tuple(range(129))},
        {"logprobs": 21},
        {"prompt_logprobs": -1},
        {"grammar": Grammar.json_object(), "ignore_eos": True},
        {"grammar": Grammar.json_object(), "min_new_tokens": 1},
    ],
)
def test_values_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(**wrong)
    assert caught.value.facts["field"] in wrong


def test_nothing_said_leaves_the_models_own_way() -> None:
    base = GenerationConfig(do_sample=True, temperature=0.3, top_k=7, eos_token_id=[1, 2])
    made = Sampling(max_new_tokens=9).generation_config(base)
    assert (made.do_sample, made.temperature, made.top_k, made.eos_token_id) == (True, 0.3, 7, [1, 2])
    assert (made.max_new_tokens, base.max_new_tokens) == (9, None)


def test_a_way_of_sampling_samples() -> None:
    made = Sampling(top_p=0.5).generation_config(GenerationConfig(do_sample=False))
    assert (made.do_sample, made.top_p) == (True, 0.5)


def test_greedy_overrides_a_config_that_samples_and_leaves_nothing_unused() -> None:
    made = Sampling(greedy=True).generation_config(GenerationConfig(do_sample=True, temperature=0.3, top_p=0.9))
    assert (made.do_sample, made.temperature, made.top_p, made.top_k) == (False, None, None, None)


def test_sample_needs_no_further_option() -> None:
    assert Sampling(greedy=False).generation_config(GenerationConfig()).do_sample is True


def test_a_temperature_of_0_is_greedy_whatever_else_is_said() -> None:
    base = GenerationConfig(do_sample=True, temperature=0.3)
    made = Sampling(temperature=0, top_p=0.9).generation_config(base)
    assert (made.do_sample, made.temperature, made.top_p) == (False, None, None)
    assert Sampling(temperature=0, top_p=0.9, seed=1).unused(base) == ("top_p", "seed")


def test_what_other_tools_write_for_none_is_none() -> None:
    wishes = Sampling(max_new_tokens=-1, top_k=-1, seed=-1)
    assert (wishes.max_new_tokens, wishes.top_k, wishes.seed) == (None, 0, None)
    assert Sampling(greedy=True, temperature=0, top_p=1.0, top_k=0, min_p=0.0).unused(GenerationConfig()) == ()


def test_min_p_samples_and_a_penalty_does_not() -> None:
    made = Sampling(min_p=0.1).generation_config(GenerationConfig())
    assert (made.do_sample, made.min_p) == (True, 0.1)
    made = Sampling(repetition_penalty=2).generation_config(GenerationConfig(do_sample=False))
    assert (made.do_sample, made.repetition_penalty) == (False, 2.0)
    assert isinstance(made.repetition_penalty, float)  # transformers refuses a whole number


def test_a_seed_is_unused_where_nothing_is_drawn() -> None:
    assert Sampling(seed=1).unused(GenerationConfig()) == ("seed",)
    assert Sampling(seed=1).unused(GenerationConfig(do_sample=True)) == ()

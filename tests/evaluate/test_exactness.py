import pytest
import torch

from coterie.engine.loader import load
from coterie.evaluate.exactness import Case, compare_exactly, likeness, sequence_logits
from coterie.generation.inputs import build_inputs
from zoo.files import stock


@pytest.fixture
def models(bundled):
    streamed, reference = load(bundled, expert_memory="25%"), stock(bundled, torch.bfloat16)
    yield streamed, reference
    streamed.coterie.close()


@pytest.fixture
def cases(processors, data):
    sound = build_inputs(processors, "", audios=[data / "go.wav"])
    return [
        Case(name="text", inputs=build_inputs(processors, "Sie können"), token_ids=(20, 30, 40)),
        Case(name="sound", inputs=sound, token_ids=(7,)),
    ]


def test_a_streamed_model_is_identical_and_every_logit_is_counted(models, cases) -> None:
    found, logits = compare_exactly(*models, cases, greedy_tokens=3)
    lengths = [case.inputs["input_ids"].shape[1] + len(case.token_ids) for case in cases]
    assert (found.identical, found.max_difference, found.different, found.same_tokens) == (True, 0.0, (), True)
    assert found.sequence_logits == sum(lengths) * 8192
    assert found.decoded_logits == found.decoded_tokens * 8192
    assert [tuple(one.shape) for one in logits] == [(length, 8192) for length in lengths]


def test_what_is_not_decoded_token_by_token_is_so_in_both(models, cases) -> None:
    for model in models:
        model.generation_config.num_beams = 2
    found, _ = compare_exactly(*models, cases[:1], greedy_tokens=3)
    assert (found.identical, found.decoded_tokens) == (True, 3)


def test_the_smallest_change_is_found(models, cases) -> None:
    streamed, reference = models
    with torch.no_grad():
        weight = reference.lm_head.weight
        weight[5, 0] = torch.nextafter(weight[5, 0], torch.tensor(9.0, dtype=weight.dtype))
    found, _ = compare_exactly(streamed, reference, cases, greedy_tokens=1)
    assert not found.identical
    assert found.different
    assert found.max_difference > 0


def test_likeness_of_a_model_with_itself_and_with_fewer_experts(models, cases, bundled) -> None:
    streamed, _ = models
    full = sequence_logits(streamed, cases)
    same = likeness(streamed, cases, full)
    assert (same.kl, same.same_top) == (0.0, 1.0)
    fewer = load(bundled, expert_memory="100%", experts_per_token=1)
    try:
        less = likeness(fewer, cases, full)
    finally:
        fewer.coterie.close()
    assert less.kl > 0.01
    assert less.tokens == same.tokens == sum(len(one) for one in full)

"""The further codes of a frame are those of transformers' own loop, and drawn with the same numbers."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration as Predictor,
)

from coterie.hf.code_predictor import predicting
from zoo.omni import omni_config

COUNT = 3


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def predictor(request):
    torch.manual_seed(0)
    config = omni_config().talker_config.code_predictor_config
    return Predictor._from_config(config, dtype=request.param).eval()


def codes(predictor, frame: int, **options):
    torch.manual_seed(frame)
    asked = torch.randn(1, 2, predictor.config.hidden_size).to(predictor.dtype)
    made = predictor.generate(
        inputs_embeds=asked, max_new_tokens=COUNT, output_hidden_states=True, return_dict_in_generate=True, **options
    )
    return made.sequences, [hidden[0] for hidden in made.hidden_states]


@pytest.mark.parametrize("options", [{"do_sample": True, "top_k": 50, "top_p": 0.8}, {"do_sample": False}])
def test_codes_of_many_frames(options, predictor) -> None:
    expected = [codes(predictor, frame, **options) for frame in range(8)]
    with predicting(predictor):
        found = [codes(predictor, frame, **options) for frame in range(8)]
    for (ids, hidden), (own_ids, own_hidden) in zip(expected, found, strict=True):
        assert torch.equal(ids, own_ids)
        assert len(hidden) == len(own_hidden) == COUNT
        assert all(map(torch.equal, hidden, own_hidden))
    assert len({tuple(ids[0].tolist()) for ids, _ in found}) > 1


def test_the_likeliest_codes_whatever_is_asked(predictor) -> None:
    expected = codes(predictor, 1, do_sample=False)[0]
    with predicting(predictor, greedy=True):
        found = codes(predictor, 1, do_sample=True, top_k=50, top_p=0.8)[0]
    assert torch.equal(expected, found)


def test_options_that_change_between_two_frames(predictor) -> None:
    asked = [{"do_sample": True, "temperature": 5.0}, {"do_sample": False}, {"do_sample": True, "top_k": 2}]
    expected = [codes(predictor, 1, **options)[0] for options in asked]
    with predicting(predictor):
        found = [codes(predictor, 1, **options)[0] for options in asked]
    assert all(map(torch.equal, expected, found))


def test_afterwards_it_generates_as_before(predictor) -> None:
    def stop() -> None:
        with predicting(predictor):
            assert "generate" in vars(predictor)
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        stop()
    assert "generate" not in vars(predictor)

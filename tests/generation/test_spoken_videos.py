"""Answers in speech to what a video shows: text, codes and sound are those of stock transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import coterie
from conftest import realigned
from coterie.generation.chat import user_message
from coterie.generation.frames import Frames
from coterie.generation.speaking import Speaking
from films import write_film
from zoo.files import stock as opened_by_transformers
from zoo.tokenizer import add_processor

pytest.importorskip("av")

TOKENS, FRAMES, SEED = 6, 20, 4
GREEDY = coterie.Sampling(max_new_tokens=TOKENS, greedy=True, seed=SEED)
VOICE = coterie.Voice(max_seconds=FRAMES * 24 / 24_000)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("films") / "a.mp4", tone=440.0)


@pytest.fixture(scope="module")
def model(checkpoint):
    add_processor(checkpoint)
    with coterie.load(checkpoint, expert_memory="50%") as opened:
        yield opened


@pytest.fixture(scope="module")
def stock(model, checkpoint):
    """Needs ``model`` first: transformers reads no more of the directory than it does."""
    opened = realigned(opened_by_transformers(checkpoint, torch.bfloat16))
    # Without it transformers fails on the talker of a prompt with sound.
    opened.config.talker_config.audio_config = opened.config.thinker_config.audio_config
    return opened


def codes_of(stock, inputs):
    """The new tokens of the text, the codes [1, groups, frames] and the samples of what transformers says."""
    heard: list[torch.Tensor] = []
    hook = stock.code2wav.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    torch.manual_seed(SEED)
    # One token more: the last one goes through no layer there, and is not spoken.
    ids, waveform = stock.generate(
        **inputs, speaker="ethan", thinker_max_new_tokens=TOKENS + 1, thinker_do_sample=False,
        thinker_eos_token_id=101, thinker_pad_token_id=0, talker_max_new_tokens=FRAMES + 1,
    )  # fmt: skip
    hook.remove()
    (codes,) = heard
    return ids[0, inputs["input_ids"].shape[1] :].tolist(), codes, waveform.reshape(-1).float().numpy()


@pytest.mark.parametrize("sound", [True, False], ids=["heard", "seen"])
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_video_is_answered_in_the_speech_of_transformers(streamed, sound, model, stock, film, monkeypatch) -> None:
    made: list[torch.Tensor] = []
    add = Frames.add
    monkeypatch.setattr(Frames, "add", lambda self, frame: made.append(frame) or add(self, frame))
    processors = coterie.processors(model)
    shown = coterie.VideoOptions(pixels=1024, sound=sound)
    inputs = coterie.chat_inputs(processors, [user_message("w5", videos=[film])], video_options=shown)
    inputs = inputs.to(torch.bfloat16)
    assert ("input_features" in inputs) == sound
    speech = Speaking(model, processors.tokenizer, inputs, GREEDY, voice=VOICE, streamed=streamed).result()
    ids, codes, waveform = codes_of(stock, inputs)
    assert list(speech.completion.token_ids) == ids[:TOKENS]
    assert speech.frames == codes.shape[-1] > 4
    assert torch.equal(torch.stack(made, dim=1)[None], codes)
    if streamed:  # in chunks; sums of another length round otherwise in bfloat16
        assert np.abs(speech.samples - waveform).max() <= 2**-6
    else:
        assert np.array_equal(speech.samples, waveform)
    assert model.coterie.stats().components["talker"].requested > 0

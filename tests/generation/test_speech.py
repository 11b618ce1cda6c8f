import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from coterie.engine.loader import load
from coterie.engine.source import text_component
from coterie.errors import LoadError, ReadError, SpeechError, UnsupportedError, UsageError
from coterie.generation import talking
from coterie.generation.chat import chat_inputs
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling
from coterie.generation.speaking import Speaking
from coterie.generation.speech import SPEECH_RATE, Speech, Voice, can_speak, voices

ASKED = [{"role": "user", "content": "w5 w6 w7"}]
WISHES = Sampling(max_new_tokens=4, greedy=True, seed=3)


def speak(model, tokenizer, inputs, wishes, *, voice=None, should_stop=None, on_text=None, on_sound=None) -> Speech:
    speaking = Speaking(
        model, tokenizer, inputs, wishes, voice=voice, should_stop=should_stop, streamed=on_sound is not None
    )
    return speaking.tell(on_text=on_text, on_sound=on_sound)


FRAME_S = 24 / SPEECH_RATE
"""Seconds of a frame of this model."""


@pytest.fixture(scope="module")
def model(omni):
    opened = load(omni, expert_memory="100%")
    yield opened
    opened.coterie.close()


def test_an_answer_has_text_and_waveform(model, omni) -> None:
    processors = Processors(omni)
    pieces: list[str] = []
    made = [
        speak(model, processors.tokenizer, chat_inputs(processors, ASKED), WISHES, on_text=pieces.append)
        for _ in range(2)
    ]
    assert can_speak(model)
    assert made[0].samples.dtype == np.float32
    assert made[0].samples.size > 0
    assert np.array_equal(made[0].samples, made[1].samples)  # the seed holds for the talker too
    assert 1 <= len(made[0].completion.token_ids) <= 4
    assert "".join(pieces) == made[0].completion.text + made[1].completion.text


def test_the_text_is_the_thinkers(model, omni) -> None:
    processors = Processors(omni)
    inputs = chat_inputs(processors, ASKED)
    expected = model.thinker.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=101, pad_token_id=0)
    made = speak(model, processors.tokenizer, inputs, WISHES)
    assert list(made.completion.token_ids) == expected[0, inputs["input_ids"].shape[1] :].tolist()


def answer(model, omni, wishes=WISHES, **options):
    processors = Processors(omni)
    return speak(model, processors.tokenizer, chat_inputs(processors, ASKED), wishes, **options)


def test_sound_that_comes_while_it_is_made_is_the_sound_of_all_frames(model, omni) -> None:
    chunks: list[np.ndarray] = []
    voice = Voice(max_seconds=40 * FRAME_S, greedy=True)
    streamed = answer(model, omni, voice=voice, on_sound=chunks.append)
    at_once = answer(model, omni, voice=voice)
    assert len(chunks) > 1
    assert np.array_equal(np.concatenate(chunks), streamed.samples)
    assert len(at_once.samples) == len(streamed.samples)
    assert np.abs(at_once.samples - streamed.samples).max() <= 1e-6
    assert streamed.completion.token_ids == at_once.completion.token_ids
    assert 0 < streamed.first_s <= streamed.seconds


def test_at_once_it_is_transformers_own_to_the_bit(model, omni) -> None:
    processors = Processors(omni)
    inputs = chat_inputs(processors, ASKED)
    made = answer(model, omni, voice=Voice(max_seconds=30 * FRAME_S))
    # Its text was cut at four tokens. The fourth goes through no layer there, and is not spoken.
    torch.manual_seed(WISHES.seed)
    longer = model.generate(
        **inputs, speaker="ethan", return_audio=True, thinker_max_new_tokens=5, thinker_do_sample=False,
        thinker_eos_token_id=101, thinker_pad_token_id=0, talker_max_new_tokens=31,
    )  # fmt: skip
    assert longer[0][0, -5:-1].tolist() == list(made.completion.token_ids)
    assert np.array_equal(longer[1].reshape(-1).numpy(), made.samples)


def test_greedy_speech_is_the_same_twice_without_a_seed(model, omni) -> None:
    wishes = replace(WISHES, seed=None)
    one, other = (answer(model, omni, wishes, voice=Voice(greedy=True, max_seconds=12 * FRAME_S)) for _ in range(2))
    assert np.array_equal(one.samples, other.samples)
    drawn = answer(model, omni, wishes, voice=Voice(max_seconds=12 * FRAME_S))
    assert not np.array_equal(drawn.samples, one.samples)


def test_the_longest_speech_that_was_asked_for(model, omni) -> None:
    made = answer(model, omni, voice=Voice(max_seconds=9.5 * FRAME_S, greedy=True))
    assert made.finish_reason == "length"
    assert 9 * FRAME_S < len(made.samples) / SPEECH_RATE <= 10 * FRAME_S


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_longest_speech_that_is_none(seconds) -> None:
    with pytest.raises(UsageError, match="seconds above 0"):
        Voice(max_seconds=seconds)


@pytest.mark.parametrize("streamed", [True, False])
def test_speech_that_meets_the_context_is_kept(streamed, omni) -> None:
    chunks: list[np.ndarray] = []
    with load(omni, expert_memory="100%", max_context=48) as model:
        made = answer(model, omni, voice=Voice(greedy=True), on_sound=chunks.append if streamed else None)
    assert made.finish_reason == "context"
    assert len(made.samples) > 4 * FRAME_S * SPEECH_RATE
    assert made.completion.finish_reason == "length"
    assert not streamed or np.array_equal(np.concatenate(chunks), made.samples)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.8"), reason="counts the calls that newer releases make"
)
def test_stopped_while_speaking_what_was_spoken_is_kept(model, omni) -> None:
    whole = answer(model, omni, voice=Voice(max_seconds=30 * FRAME_S, greedy=True))
    asked_after = iter(range(10_000))
    # Four thinker steps over two layers, then the talker's.
    made = answer(model, omni, voice=Voice(greedy=True), should_stop=lambda: next(asked_after) > 40)
    assert made.finish_reason == "interrupted"
    assert made.completion.finish_reason == "length"
    assert 0 < len(made.samples) < len(whole.samples)
    assert next(asked_after) == 42


def test_stopped_before_it_speaks_there_is_text_and_no_sound(model, omni) -> None:
    asked_after = iter(range(10_000))
    made = answer(model, omni, should_stop=lambda: next(asked_after) > 4)
    assert (made.finish_reason, made.completion.finish_reason) == ("interrupted", "interrupted")
    assert made.samples.size == 0
    assert made.first_s is None
    assert made.completion.token_ids
    assert next(asked_after) == 6  # no layer was computed afterwards


def test_an_error_while_it_speaks_keeps_what_was_spoken(model, omni, monkeypatch) -> None:
    steps = iter(range(10_000))
    own = model.talker.codec_head.forward

    def fails(hidden):
        if next(steps) == 10:
            raise ReadError("Expert 3 of layer 1 cannot be read.", advice="Look at the disk.")
        return own(hidden)

    monkeypatch.setattr(model.talker.codec_head, "forward", fails)
    with pytest.raises(
        SpeechError, match=r"spoken to its end: Expert 3 .* cannot be read\. Look at the disk"
    ) as caught:
        answer(model, omni, voice=Voice(greedy=True))
    assert isinstance(caught.value.__cause__, ReadError)
    assert len(caught.value.speech.samples) > 0
    assert len(caught.value.speech.completion.token_ids) == 4


@pytest.mark.parametrize("streamed", [True, False])
def test_a_talker_that_generates_in_a_way_of_its_own_is_heard(streamed, model, omni, monkeypatch) -> None:
    expected = answer(model, omni, voice=Voice(max_seconds=12 * FRAME_S))
    own = talking.one_by_one
    monkeypatch.setattr(talking, "one_by_one", lambda part, config: part is not model.talker and own(part, config))
    chunks: list[np.ndarray] = []
    made = answer(model, omni, voice=Voice(max_seconds=12 * FRAME_S), on_sound=chunks.append if streamed else None)
    assert np.array_equal(made.samples, expected.samples)
    assert made.finish_reason == expected.finish_reason == "length"
    assert not streamed or np.array_equal(np.concatenate(chunks), made.samples)


def test_an_answer_without_text_has_no_sound(model, omni) -> None:
    made = answer(model, omni, replace(WISHES, max_new_tokens=5), voice=Voice(greedy=True))
    ends = replace(WISHES, stop_token_ids=made.completion.token_ids[:1])
    silent = answer(model, omni, ends)
    assert silent.finish_reason == "none"
    assert silent.samples.size == 0


@pytest.fixture
def settings(model):
    """Has the thinker want something else besides."""
    own = model.generation_config

    def want(**values):
        model.generation_config = copy.deepcopy(own)
        model.generation_config.update(**values)

    yield want
    model.generation_config = own


def test_stop_strings_that_its_tokenizer_cannot_say_name_the_file(model, omni, settings) -> None:
    settings(stop_strings=["w9"])
    processors = Processors(omni)
    with pytest.raises(LoadError, match=r"settings in .*generation_config\.json") as caught:
        speak(model, processors.tokenizer, chat_inputs(processors, ASKED), WISHES)
    assert isinstance(caught.value.__cause__, ValueError)


def test_healing_tokens_is_refused_as_the_talker_reads_the_prompt_too(model, omni, settings) -> None:
    settings(token_healing=True)
    processors = Processors(omni)
    with pytest.raises(UnsupportedError, match=r"token_healing = True in .*generation_config\.json") as refused:
        speak(model, processors.tokenizer, chat_inputs(processors, ASKED), WISHES)
    assert refused.value.key == "token_healing"


def test_an_unknown_voice_names_the_nearest(model, omni) -> None:
    processors = Processors(omni)
    with pytest.raises(UsageError, match="Did you mean 'ethan'"):
        speak(model, processors.tokenizer, chat_inputs(processors, ASKED), WISHES, voice=Voice(name="Etha"))


def test_a_thinker_alone_does_not_speak(omni) -> None:
    thinker = load(omni, component="thinker", expert_memory="100%")
    processors = Processors(omni)
    with pytest.raises(UnsupportedError, match="no talker"):
        speak(thinker, processors.tokenizer, chat_inputs(processors, ASKED), WISHES)
    thinker.coterie.close()


def test_where_only_text_is_wanted_the_thinker_is_opened(omni, bundled, zoo_checkpoint, tmp_path) -> None:
    from coterie.extraction import extract

    assert text_component(omni) == "thinker"
    assert text_component(bundled) is None
    assert text_component("bundled") is None
    assert text_component(zoo_checkpoint("mixtral")) is None
    extract(omni, tmp_path / "whole")
    extract(omni, tmp_path / "thinker", component="thinker")
    assert text_component(tmp_path / "whole") == "thinker"
    assert text_component(tmp_path / "thinker") is None


def test_the_voices_of_a_model(model, bundled) -> None:
    assert voices(model.config) == ["ethan", "chelsie"]
    assert voices(model.thinker.config) == []

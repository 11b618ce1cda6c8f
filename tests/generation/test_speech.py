import copy
import wave

import numpy as np
import pytest
import transformers
from packaging.version import Version

from coterie.engine.loader import load
from coterie.engine.source import text_component
from coterie.errors import LoadError, UnsupportedError, UsageError
from coterie.generation.chat import chat_inputs
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling
from coterie.generation.speech import SPEECH_RATE, can_speak, speak, write_wav

ASKED = [{"role": "user", "content": "w5 w6 w7"}]
WISHES = Sampling(max_new_tokens=4, greedy=True, seed=3)


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


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.8"), reason="counts the calls that newer releases make"
)
def test_stopped_while_speaking_there_is_text_and_no_sound(model, omni) -> None:
    processors = Processors(omni)
    pieces: list[str] = []
    asked_after = iter(range(10_000))
    made = speak(
        model,
        processors.tokenizer,
        chat_inputs(processors, ASKED),
        WISHES,
        on_text=pieces.append,
        # Four thinker steps over two layers, then the talker's.
        should_stop=lambda: next(asked_after) > 12,
    )
    assert made.samples is None
    assert made.completion.finish_reason == "interrupted"
    assert made.completion.token_ids
    assert next(asked_after) == 14  # nothing was computed afterwards


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
        speak(model, processors.tokenizer, chat_inputs(processors, ASKED), WISHES, speaker="Etha")


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


def test_a_wav_file_has_the_samples_clipped(tmp_path) -> None:
    write_wav(tmp_path / "a.wav", np.array([0.0, 1.0, -1.0, 2.0, 0.5], dtype=np.float32))
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SPEECH_RATE)
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == [0, 32767, -32767, 32767, 16384]

"""A text that is read out, whatever the model would say."""

import numpy as np
import pytest
import torch

from coterie.engine.loader import load
from coterie.errors import InputError, LoadError, UnsupportedError, UsageError
from coterie.generation.chat import chat_inputs, user_message
from coterie.generation.engine import Engine
from coterie.generation.opened import OpenModel
from coterie.generation.reading_aloud import REQUEST, read_aloud, reading_aloud
from coterie.generation.sampling import Sampling
from coterie.generation.speaking import Speaking, speak
from coterie.generation.speech import Voice
from coterie.generation.tickets import Piece, SoundChunk
from zoo.talkers import MIRRORED

pytestmark = pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")

VOICE = Voice(greedy=True, max_seconds=0.03)
TEXT = "w9 w8 w7 w6"
LONG = 5
"""A seed with which this is spoken for a while."""


@pytest.fixture(scope="module")
def opened(omni):
    model = load(omni, expert_memory="100%")
    yield OpenModel.of(model)
    model.coterie.close()


def test_the_model_s_own_answer_sounds_as_if_it_had_given_it(opened) -> None:
    inputs = chat_inputs(opened.processors, [user_message("w5 w6 w7")])
    answered = speak(opened, inputs, Sampling(max_new_tokens=4, greedy=True), voice=VOICE).result()
    said = answered.completion.token_ids
    before = opened.runtime.stats().decode_tokens.get("thinker")
    read = Speaking(opened.model, opened.processors.tokenizer, inputs, voice=VOICE, said=said).result()
    assert opened.runtime.stats().decode_tokens.get("thinker") == before  # the thinker was not asked
    assert read.completion.token_ids == said
    assert read.completion.text == answered.completion.text
    assert np.array_equal(read.samples, answered.samples)
    assert (read.frames, read.finish_reason) == (answered.frames, answered.finish_reason)


@MIRRORED
def test_it_is_what_transformers_says_of_a_thinker_that_was_forced(opened) -> None:
    """All of the thinker's passes, and stock's vocoder at the end: there is nothing that is not computed in it."""
    prompt = reading_aloud(opened.processors, TEXT)
    inputs, model = prompt.inputs(), opened.model
    ids = torch.cat([inputs["input_ids"], torch.tensor([[*prompt.said, 101]])], dim=1)
    with torch.no_grad():
        passed = model.thinker(input_ids=ids[:, :-1], output_hidden_states=True)
    layer = model.config.talker_config.accept_hidden_layer

    class Forced:
        sequences = ids
        hidden_states = ({0: passed.hidden_states[0], layer: passed.hidden_states[layer]},)

    _, waveform = model.generate(
        **inputs, speaker="ethan", return_audio=True, talker_do_sample=False, talker_max_new_tokens=31,
        thinker_eos_token_id=101, thinker_custom_generate=lambda *_, **__: Forced,
    )  # fmt: skip
    speaking = Speaking(model, opened.processors.tokenizer, inputs, voice=VOICE, said=prompt.said, streamed=False)
    assert np.array_equal(speaking.result().samples, waveform.reshape(-1).numpy())


def test_text_and_sound_come_in_pieces(opened) -> None:
    pieces = list(read_aloud(opened, TEXT, voice=Voice(max_seconds=0.03), seed=LONG))
    assert "".join(one.text for one in pieces if isinstance(one, Piece)) == TEXT
    sounds = [one.samples for one in pieces if isinstance(one, SoundChunk)]
    assert len(sounds) > 1
    other = read_aloud(opened, "w20 w21", voice=VOICE).result()
    assert not np.array_equal(np.concatenate(sounds), other.samples)
    assert other.completion.finish_reason == "stop"


def test_a_seed_makes_it_repeatable(opened) -> None:
    one, same, other = (
        read_aloud(opened, TEXT, voice=Voice(max_seconds=0.02), seed=seed).result().samples for seed in (3, 3, 4)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_what_was_read_is_kept_when_it_is_stopped(opened) -> None:
    speaking = read_aloud(opened, TEXT, seed=LONG)
    for piece in speaking:
        if isinstance(piece, SoundChunk):
            speaking.stop()
    speech = speaking.result()
    assert speech.finish_reason == "interrupted"
    assert speech.completion.text == TEXT
    assert len(speech.samples)


def test_several_are_read_at_once_as_each_alone(opened) -> None:
    texts = (TEXT, "w20 w21 w22")
    alone = [read_aloud(opened, text, voice=VOICE).result() for text in texts]
    with Engine(opened) as engine:
        tickets = [
            engine.submit(lambda text=text: reading_aloud(opened.processors, text), voice=VOICE) for text in texts
        ]
        answer = engine.submit([user_message("w5 w6")], Sampling(max_new_tokens=3, greedy=True))
        assert len(answer.result(60).token_ids) == 3
        for ticket, expected in zip(tickets, alone, strict=True):
            assert ticket.result(60).text == expected.completion.text
            assert np.array_equal(ticket.speech.samples, expected.samples)
        endless = engine.submit(
            lambda: reading_aloud(opened.processors, TEXT), sampling=Sampling(seed=LONG), voice=Voice()
        )
        next(one for one in endless if isinstance(one, SoundChunk))
        endless.cancel()
    assert engine.running == 0


@pytest.mark.parametrize(("text", "words"), [("", "nothing to say"), (" \n", "nothing to say"),
                                             ("w5 <|im_end|> w6", "cannot be spoken")])  # fmt: skip
def test_what_cannot_be_said_is_told(text, words, opened) -> None:
    with pytest.raises(InputError, match=words) as refused:
        read_aloud(opened, text)
    assert refused.value.field == "input"


def test_who_cannot_read_says_so(opened, bundled, omni, monkeypatch) -> None:
    with pytest.raises(UsageError, match="Did you mean 'ethan'"):
        read_aloud(opened, TEXT, voice=Voice(name="etha"))
    with load(omni, component="thinker", expert_memory="100%") as thinker, pytest.raises(UnsupportedError):
        read_aloud(thinker, TEXT)
    monkeypatch.setattr(opened.processors.tokenizer, "chat_template", None)
    with pytest.raises((InputError, LoadError), match="no chat template"):
        read_aloud(opened, TEXT)


def test_the_user_s_turn_has_the_text(opened) -> None:
    prompt = reading_aloud(opened.processors, f"  {TEXT}\n")
    tokenizer = opened.processors.tokenizer
    assert tokenizer.decode(prompt.said) == TEXT
    asked = chat_inputs(opened.processors, [user_message(REQUEST.format(text=TEXT))])
    assert torch.equal(prompt.inputs()["input_ids"], asked["input_ids"])

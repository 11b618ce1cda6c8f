"""Speech while the text goes on is what transformers makes of the whole text, and comes early."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BatchFeature

import coterie
from coterie.engine.loader import load
from coterie.errors import OutputError, ReadError, SpeechError, UnsupportedError, UsageError
from coterie.generation.completion import complete
from coterie.generation.frames import FIRST_FRAMES, Frames
from coterie.generation.kept_cache import KeptCache
from coterie.generation.speaking import Speaking
from coterie.generation.tickets import Piece, SoundChunk
from coterie.hf import talker
from coterie.hf.generation_steps import may_come_in_pieces, prepare_in_pieces
from zoo import ZOO
from zoo.talkers import MIRRORED

GREEDY = coterie.Sampling(max_new_tokens=20, greedy=True)
DRAWN = coterie.Sampling(max_new_tokens=40, temperature=1.0, top_k=5, seed=3)
ASKED = [{"role": "user", "content": "w5 w6 w7"}]
FRAME = 24
"""Samples of a frame of this model."""
SHORT = coterie.Voice(greedy=True, max_seconds=30 * FRAME / 24_000)
DRAWN_VOICE = replace(SHORT, greedy=False)


@pytest.fixture(scope="module")
def model(checkpoint):
    with load(checkpoint, expert_memory="100%") as opened:
        yield opened


def shown(model):
    """A prompt with a picture and a sound."""
    return BatchFeature(ZOO["qwen3_omni"].inputs(length=32, image=True, audio=True)).to(model.dtype)


def stock(model, count: int, *, frames: int, seed: int = 0, ends=101, inputs=None, **options):
    """What transformers makes of so many tokens of text: their ids, the codes and the waveform."""
    inputs = inputs or coterie.chat_inputs(coterie.processors(model), ASKED)
    codes: list[torch.Tensor] = []
    own = model.code2wav.forward
    model.code2wav.forward = lambda heard, **more: codes.append(heard) or own(heard, **more)
    torch.manual_seed(seed)
    try:
        ids, waveform = model.generate(
            **inputs, speaker="ethan", return_audio=True, thinker_max_new_tokens=count, thinker_eos_token_id=ends,
            thinker_pad_token_id=0, talker_max_new_tokens=frames + 1, **options,
        )  # fmt: skip
    finally:
        del model.code2wav.forward
    return ids[0, inputs["input_ids"].shape[1] :].tolist(), codes, waveform.reshape(-1).numpy()


def spoken(model, sampling=GREEDY, **options):
    """The pieces of an answer, and the whole."""
    speaking = coterie.speak(model, "w5 w6 w7", sampling, **options)
    pieces = list(speaking)
    return pieces, speaking.result()


def samples(pieces):
    return np.concatenate([piece.samples for piece in pieces if isinstance(piece, SoundChunk)])


@pytest.fixture
def frames(monkeypatch):
    """The codes of what is spoken, a frame in each column."""
    made: list[torch.Tensor] = []
    add = Frames.add
    monkeypatch.setattr(Frames, "add", lambda self, frame: made.append(frame) or add(self, frame))
    return lambda: torch.stack(made, dim=1)[None]


@pytest.mark.parametrize("voice", [pytest.param(SHORT, marks=MIRRORED), DRAWN_VOICE], ids=["greedy", "drawn"])
def test_it_is_the_sound_that_transformers_makes_of_the_whole_text(voice, model, frames) -> None:
    pieces, speech = spoken(model, replace(GREEDY, seed=3), voice=voice)
    options = {"talker_do_sample": False} if voice.greedy else {}
    # One token more: the last one goes through no layer there, and is not spoken.
    ids, codes, waveform = stock(model, 21, frames=30, seed=3, thinker_do_sample=False, **options)
    assert ids[:20] == list(speech.completion.token_ids)
    assert torch.equal(frames(), codes[0])
    assert samples(pieces).dtype == np.float32
    assert np.array_equal(samples(pieces), speech.samples)
    assert len(speech.samples) == len(waveform)
    # The vocoder computes in bfloat16, too, where sums of another length round otherwise.
    assert np.abs(speech.samples - waveform).max() <= 2**-6


def test_the_first_sound_comes_while_the_text_goes_on(model) -> None:
    before = model.coterie.stats().decode_tokens
    with coterie.speak(model, "w5 w6 w7", replace(GREEDY, max_new_tokens=40), voice=SHORT) as speaking:
        first = next(piece for piece in speaking if isinstance(piece, SoundChunk))
        now = model.coterie.stats().decode_tokens
        made = {part: now[part] - before[part] for part in now}
        # A frame is known in the pass after that of its first code, which reads the token after.
        assert made == {"thinker": FIRST_FRAMES, "talker": FIRST_FRAMES}
        assert len(first.samples) > (FIRST_FRAMES - 1) * FRAME
        later = list(speaking)
    assert any(isinstance(piece, Piece) for piece in later)
    assert len(speaking.result().completion.token_ids) == 40


def test_the_sound_of_a_text_that_is_drawn_with_a_seed_is_that_of_transformers(model, frames) -> None:
    known = spoken(model, replace(DRAWN, max_new_tokens=6), voice=SHORT)[1].completion.token_ids
    made = frames().shape[-1]
    # It ends by itself: of a text that is cut transformers draws one token more for the same sound.
    pieces, speech = spoken(model, replace(DRAWN, stop_token_ids=known[-1:]), voice=DRAWN_VOICE)
    ids, codes, _ = stock(
        model, 40, frames=30, seed=3, ends=[101, known[-1]], thinker_do_sample=True, thinker_temperature=1.0,
        thinker_top_k=5,
    )  # fmt: skip
    assert list(speech.completion.token_ids) == ids
    assert torch.equal(frames()[..., made:], codes[0])
    kinds = [piece.part for piece in pieces]
    assert kinds == sorted(kinds, key=("text", "sound").index)  # its random numbers come after those of the text


def test_a_voice_with_a_seed_of_its_own_does_not_wait(model, frames) -> None:
    voice = replace(SHORT, greedy=False, seed=4)
    pieces, speech = spoken(model, DRAWN, voice=voice)
    kinds = [piece.part for piece in pieces]
    assert kinds.index("sound") < len(kinds) - 1 - kinds[::-1].index("text")
    again = spoken(model, DRAWN, voice=voice)[1]
    assert np.array_equal(again.samples, speech.samples)
    silent = spoken(model, DRAWN, voice=SHORT)[1]
    assert silent.completion.token_ids == speech.completion.token_ids


def test_where_rows_depend_on_their_number_the_text_is_read_as_a_whole(model, frames, monkeypatch) -> None:
    monkeypatch.setattr(talker, "rows_are_independent", lambda model: False)
    pieces, _ = spoken(model, replace(GREEDY, seed=3), voice=DRAWN_VOICE)
    kinds = [piece.part for piece in pieces]
    assert kinds == sorted(kinds, key=("text", "sound").index)
    _, codes, _ = stock(model, 21, frames=30, seed=3, thinker_do_sample=False)
    assert torch.equal(frames(), codes[0])


def test_rows_that_depend_on_their_number_are_found_out(model) -> None:
    assert talker.rows_are_independent(model)

    class Leaning(torch.nn.Module):
        def forward(self, rows):
            return rows * (1 + (rows.shape[1] > 40) / 128)

    other = SimpleNamespace(
        talker=SimpleNamespace(text_projection=Leaning()), config=model.config, dtype=torch.bfloat16
    )
    assert not talker.rows_are_independent(other)


def test_a_turn_of_a_conversation_goes_on_with_what_is_kept(model) -> None:
    talk = coterie.Conversation(model, coterie.processors(model), sampling=replace(GREEDY, max_new_tokens=6))
    with talk.speak("w5 w6", voice=SHORT) as first:
        pieces = list(first)
    assert talk.messages[-1]["content"] == "".join(piece.text for piece in pieces if piece.part == "text")
    second = talk.speak("w7", voice=SHORT).result()
    assert second.completion.reused_tokens > 0
    assert second.samples.size > 0
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
    # What the talker reads of the turns before does not depend on what is kept of them.
    anew = coterie.Conversation(model, coterie.processors(model), sampling=talk.sampling, reuse=False)
    anew.messages = talk.messages[:2]
    assert np.array_equal(anew.speak("w7", voice=SHORT).result().samples, second.samples)


def test_a_conversation_has_a_turn_of_what_was_closed_before_its_end(model) -> None:
    talk = coterie.Conversation(model, coterie.processors(model), sampling=replace(GREEDY, max_new_tokens=40))
    with talk.speak("w5 w6", voice=SHORT) as speaking:
        heard = next(piece for piece in speaking if piece.part == "sound")
    speech = speaking.result()
    assert speech.finish_reason == speech.completion.finish_reason == "interrupted"
    assert np.array_equal(speech.samples[: len(heard.samples)], heard.samples)
    assert FIRST_FRAMES <= len(speech.completion.token_ids) < 40
    assert len(talk.messages) == 2
    with talk.speak("w7", voice=SHORT) as nothing:
        pass
    assert nothing.result().finish_reason == "interrupted"
    assert len(talk.messages) == 2


def test_pictures_and_sounds_of_a_prompt_are_heard_as_transformers_hears_them(model, frames) -> None:
    inputs = shown(model)
    speech = coterie.speak(model, inputs, replace(GREEDY, max_new_tokens=9, seed=3), voice=DRAWN_VOICE).result()
    ids, codes, _ = stock(model, 10, frames=30, seed=3, inputs=inputs, thinker_do_sample=False)
    assert list(speech.completion.token_ids) == ids[:9]
    assert torch.equal(frames(), codes[0])


def test_an_error_of_the_talker_ends_the_sound_and_not_the_text(model, monkeypatch) -> None:
    steps = iter(range(10_000))
    own = model.talker.codec_head.forward

    def fails(hidden):
        if next(steps) == 12:
            raise ReadError("Expert 3 cannot be read.")
        return own(hidden)

    monkeypatch.setattr(model.talker.codec_head, "forward", fails)
    speaking = coterie.speak(model, "w5 w6 w7", GREEDY, voice=SHORT)
    pieces = []
    with pytest.raises(SpeechError, match="Expert 3 cannot be read") as caught:
        pieces.extend(speaking)  # what comes before the error is lost to extend
    assert len(caught.value.speech.completion.token_ids) == 20
    assert len(caught.value.speech.samples) > 9 * FRAME
    assert np.array_equal(speaking.result().samples, caught.value.speech.samples)


def test_who_cannot_take_the_sound_gets_the_text(model) -> None:
    def closed(samples):
        raise OutputError("The player ended.")

    told: list[str] = []
    with pytest.raises(SpeechError, match="The player ended") as caught:
        coterie.speak(model, "w5 w6 w7", GREEDY, voice=SHORT).tell(on_text=told.append, on_sound=closed)
    assert len(caught.value.speech.completion.token_ids) == 20
    assert "".join(told) == caught.value.speech.completion.text


def test_two_answers_that_are_spoken_in_turn_are_those_of_each_alone(model) -> None:
    def asked(voice):
        return coterie.speak(model, "w5 w6", replace(GREEDY, seed=1), voice=replace(SHORT, greedy=voice == "greedy"))

    alone = {voice: asked(voice).result() for voice in ("greedy", "drawn")}
    both = {voice: asked(voice) for voice in alone}
    going = list(both.values())
    while going:
        going = [one for one in going if next(one, None) is not None]
    for voice, speaking in both.items():
        assert np.array_equal(speaking.result().samples, alone[voice].samples)


def test_what_cannot_be_spoken_is_said_at_once(model, bundled) -> None:
    with pytest.raises(UsageError, match="Did you mean 'ethan'"):
        coterie.speak(model, "w5", voice=coterie.Voice(name="Etha"))
    with pytest.raises(UsageError, match="seed of a voice"):
        coterie.Voice(seed=-2)
    with load(bundled, expert_memory="100%") as mute, pytest.raises(UnsupportedError, match="no talker"):
        coterie.speak(mute, "w5")


def test_pictures_and_sounds_of_earlier_turns_are_heard_again(model) -> None:
    tokenizer, wishes = coterie.processors(model).tokenizer, replace(GREEDY, max_new_tokens=3)
    kept, first = KeptCache(), shown(model)
    if not may_come_in_pieces(prepare_in_pieces(model.thinker, first)):
        pytest.skip("this release takes pictures in one pass over the whole prompt alone")

    def asked(inputs, reuse):
        speaking = Speaking(model, tokenizer, inputs, wishes, voice=SHORT, reuse=reuse)
        return speaking.result(), speaking._answer.talking.media.rows

    answer, rows = asked(first, kept)
    ids = [*first["input_ids"][0].tolist(), *answer.completion.token_ids]
    more = BatchFeature({**first, "input_ids": torch.tensor([ids + first["input_ids"][0, -8:].tolist()])})
    more["attention_mask"] = torch.ones_like(more["input_ids"])
    again, heard = asked(more, kept)
    anew, expected = asked(more, None)
    assert again.completion.reused_tokens >= 32
    assert torch.equal(heard, rows)
    assert torch.allclose(heard.float(), expected.float(), atol=0.05)
    assert len(again.samples) == len(anew.samples)
    # A turn that was not spoken has left nothing of what it saw.
    complete(model, tokenizer, first, wishes, reuse=kept)
    anew_again, expected_again = asked(more, kept)
    assert anew_again.completion.reused_tokens == 0
    assert torch.equal(expected_again, expected)


@pytest.mark.parametrize("most", [4, 20])
def test_quantised_weights_speak_alike_whether_the_sound_waits_or_not(most, checkpoint, frames, tmp_path) -> None:
    coterie.extract(checkpoint, tmp_path / "store", scheme="int8", dense_scheme="int8")
    with load(tmp_path / "store", expert_memory="100%") as quantised:
        assert talker.text_reading(quantised) == "alone"
        inputs = coterie.chat_inputs(coterie.processors(quantised), ASKED)
        tokenizer, wishes = coterie.processors(quantised).tokenizer, replace(GREEDY, max_new_tokens=most)
        made = [
            Speaking(quantised, tokenizer, inputs, wishes, voice=SHORT, streamed=streamed).result()
            for streamed in (True, False)
        ]
    assert torch.equal(*frames().chunk(2, dim=-1))
    assert len(made[0].samples) == len(made[1].samples)

"""Answers in speech beside others: an engine's."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

import coterie
from coterie.engine.loader import load
from coterie.errors import InputError, RequestCancelledError, SpeechError, UsageError
from coterie.generation.tickets import SoundChunk, Ticket

GREEDY = coterie.Sampling(max_new_tokens=12, greedy=True)
LONG = coterie.Sampling(max_new_tokens=60, greedy=True)
AS_LONG_AS_THERE_IS_ROOM = coterie.Sampling(max_new_tokens=240, greedy=True, ignore_eos=True)
VOICE = coterie.Voice(max_seconds=24 * 20 / 24_000)
ASKED = [{"role": "user", "content": "w5 w6 w7"}]


@pytest.fixture(scope="module")
def model(checkpoint):
    with load(checkpoint, expert_memory="100%", max_context=400) as opened:
        yield opened


@pytest.fixture
def engine(model):
    with coterie.Engine(model, parallel=3, piece=64) as engine:
        yield engine


def test_each_says_what_it_says_alone(model, checkpoint) -> None:
    sampling = coterie.Sampling(max_new_tokens=12, greedy=True, seed=2)
    alone = coterie.speak(model, ASKED, sampling, voice=VOICE).result()
    with load(checkpoint, component="thinker", expert_memory="100%") as thinker:
        text = coterie.Conversation(thinker, coterie.processors(thinker), sampling=LONG, reuse=False).ask("w8")
    with coterie.Engine(model, parallel=3, piece=64) as engine:
        spoken = [engine.submit(ASKED, sampling, voice=VOICE) for _ in range(2)]
        written = engine.submit([{"role": "user", "content": "w8"}], LONG)
        assert written.result(60).token_ids == text.token_ids
        for ticket in spoken:
            assert ticket.result(60).token_ids == alone.completion.token_ids
            assert np.array_equal(ticket.speech.samples, alone.samples)
            chunks = [piece.samples for piece in ticket if isinstance(piece, SoundChunk)]
            assert np.array_equal(np.concatenate(chunks), alone.samples)
    assert written.speech is None


def test_text_and_sound_come_in_turn_and_others_go_on(engine, monkeypatch) -> None:
    told: list[tuple[str, str]] = []
    tell = Ticket.tell
    monkeypatch.setattr(
        Ticket, "tell", lambda self, event: told.append((self.name, type(event).__name__)) or tell(self, event)
    )
    other = engine.submit([{"role": "user", "content": "w8"}], AS_LONG_AS_THERE_IS_ROOM, name="other")
    next(iter(other))
    speech = engine.submit(ASKED, LONG, name="speech", voice=coterie.Voice(greedy=True, max_seconds=24 * 40 / 24_000))
    speech.result(60)
    other.cancel()
    first = told.index(("speech", "SoundChunk"))
    last = len(told) - 1 - told[::-1].index(("speech", "Piece"))
    assert first < last
    assert ("other", "Piece") in told[first:last]


def test_who_is_given_up_holds_nothing_any_more(engine) -> None:
    ticket = engine.submit(ASKED, LONG, voice=coterie.Voice(greedy=True))
    next(piece for piece in ticket if isinstance(piece, SoundChunk))
    assert engine.governor.promised > 0
    ticket.cancel()
    with pytest.raises(RequestCancelledError):
        ticket.result(60)
    after = engine.submit(ASKED, GREEDY, voice=VOICE)
    after.result(60)
    assert after.speech.samples.size > 0
    assert engine.governor.promised == engine.governor.held == 0
    assert engine.running == 0


def test_a_talker_that_fails_ends_its_own_answer(engine, model, monkeypatch) -> None:
    own = model.talker.codec_head.forward
    steps = iter(range(10_000))

    def fails(hidden):
        if next(steps) == 10:
            raise coterie.errors.ReadError("Expert 3 cannot be read.")
        return own(hidden)

    monkeypatch.setattr(model.talker.codec_head, "forward", fails)
    ticket = engine.submit(ASKED, GREEDY, voice=VOICE)
    with pytest.raises(SpeechError, match="Expert 3 cannot be read") as caught:
        ticket.result(60)
    assert len(caught.value.speech.completion.token_ids) == 12
    assert len(engine.submit(ASKED, GREEDY).result(60).token_ids) == 12


def test_an_unknown_voice_is_refused(engine) -> None:
    with pytest.raises(UsageError, match="Did you mean 'ethan'"):
        engine.submit(ASKED, GREEDY, voice=coterie.Voice(name="Etha")).result(60)


def test_a_text_that_no_template_made_cannot_be_spoken(engine) -> None:
    with pytest.raises(InputError, match="no turn of the assistant"):
        engine.submit("w5 w6", GREEDY, voice=VOICE).result(60)


@pytest.mark.parametrize("given_up", [False, True])
def test_what_speaks_stays_in_memory_until_the_answer_has_ended(given_up, engine, model, monkeypatch) -> None:
    held: list[None] = []
    entered: list[None] = []

    @contextmanager
    def speaking():
        held.append(None)
        entered.append(None)
        yield
        held.pop()

    monkeypatch.setattr(type(model.coterie), "speaking", lambda runtime: speaking())
    ticket = engine.submit(ASKED, LONG if given_up else GREEDY, voice=VOICE)
    next(piece for piece in ticket if isinstance(piece, SoundChunk))
    if given_up:
        ticket.cancel()
    else:
        ticket.result(60)
    engine.submit(ASKED, GREEDY).result(60)  # in the model's thread, after all that is left of the first
    assert entered
    assert not held

"""`coterie chat --speak` and `/speak`."""

import io
import json
import os
import signal
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from coterie.cli import turn_sounds
from coterie.cli.speech import SoundOutput, numbered
from coterie.engine.loader import load
from coterie.errors import OutputError, UsageError
from coterie.generation.conversation import Conversation
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling
from coterie.generation.speech import Voice
from films import write_film
from zoo.tokenizer import add_processor

pytestmark = pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")

SPOKEN = ("-n", "3", "--greedy", "--voice-greedy", "--max-speech", "0.02")
FRAMES = 20
"""Of 0.02 seconds, in this model."""


@pytest.fixture
def talk(omni, coterie, monkeypatch, tmp_path):
    """Runs `coterie chat` with these lines on stdin, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*lines: str, options: tuple[str, ...] = ("--speak", "a.wav", *SPOKEN)):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return coterie("chat", str(omni), "--expert-memory", "100%", *options)

    return run


def samples(path: str) -> list[int]:
    with wave.open(path) as sound:
        assert sound.getframerate() == 24_000
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").tolist()


def files() -> list[str]:
    return sorted(path.name for path in Path().glob("*.wav"))


def test_every_answer_has_a_file_and_the_text_goes_on(talk, omni, coterie) -> None:
    Path("a-1.wav").write_bytes(b"of yesterday")
    outcome = talk("w5 w6", "w7", "/save kept.json", "/retry")
    assert outcome.code == 0, outcome.err
    assert files() == ["a-1.wav", "a-2.wav", "a-3.wav", "a-4.wav"]
    assert Path("a-1.wav").read_bytes() == b"of yesterday"
    assert "in a-2.wav" in outcome.err
    assert len(outcome.out.splitlines()) == 3
    messages = json.loads(Path("kept.json").read_text())["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"] == outcome.out.splitlines()[0]
    # It is what the same turn is by itself.
    options = ("--chat", *SPOKEN, "--speak", "alone.wav", "-q")
    alone = coterie("generate", str(omni), "--expert-memory", "100%", "w5 w6", *options)
    assert alone.out == outcome.out.splitlines(keepends=True)[0]
    assert samples("alone.wav") == samples("a-2.wav")
    assert any(samples("a-2.wav"))


def test_speech_is_turned_off_and_on(talk) -> None:
    outcome = talk("w5", "/speak off", "w5", "/speak", "/speak b.wav", "/speak", "w5", "/speak on", "/reset", "w5")
    assert outcome.code == 0, outcome.err
    assert files() == ["a-1.wav", "b-1.wav", "b-2.wav"]
    assert samples("a-1.wav") == samples("b-2.wav")
    assert outcome.err.count("Answers are not spoken.") == 2
    assert outcome.err.count("The next answer is spoken into b-1.wav.") == 2
    assert outcome.err.count("speech 0.0 s") == 3


@pytest.mark.slow
def test_a_silent_answer_has_the_text_of_a_spoken_one(talk) -> None:
    spoken, silent = talk("w5 w6"), talk("/speak off", "w5 w6", "/continue")
    assert silent.out.splitlines()[0] == spoken.out.splitlines()[0]
    assert len(silent.out.splitlines()) == 2


def test_the_voice_is_a_setting(talk) -> None:
    outcome = talk("w5", "/set voice chelsie", "/reset", "w5", "/set max_speech 0.003", "/reset", "w5")
    assert outcome.code == 0, outcome.err
    one, other, short = map(samples, files())
    assert one != other
    assert len(short) < len(other)
    drawn = talk(
        "/set voice_greedy off", "/set voice_seed 4", "w5", "/reset", "w5", "/set voice_seed 5", "/reset", "w5"
    )
    assert drawn.code == 0, drawn.err
    first, again, otherwise = map(samples, files()[3:])
    assert first == again != otherwise
    wrong = talk(
        "/set voice Bob",
        "/set voice_greedy perhaps",
        "/set voice_seed x",
        "/set max_speech long",
        "/set max_speech -1",
        "w5",
    )
    assert wrong.code == 1
    for words in ("'Bob'", "'perhaps'", "'x' is not a value of voice_seed", "'long'", "above 0, not -1"):
        assert words in wrong.err
    assert samples(files()[-1]) == one


def test_a_video_is_answered_in_speech(talk, omni, coterie, tmp_path) -> None:
    pytest.importorskip("av")
    add_processor(omni)
    film = write_film(tmp_path / "film.mp4", tone=440.0)
    shown = ("--video-pixels", "1024")
    options = ("generate", str(omni), "--expert-memory", "100%", "w5", "--video", str(film), *shown, *SPOKEN, "-q")
    alone = coterie(*options, "--speak", "alone.wav")
    assert alone.code == 0, alone.err
    assert any(samples("alone.wav"))
    outcome = talk(f"/video {film}", "w5", options=("--speak", "a.wav", *shown, *SPOKEN))
    assert outcome.code == 0, outcome.err
    assert outcome.out == alone.out
    assert samples("a-1.wav") == samples("alone.wav")
    blind = coterie("generate", str(omni), "--expert-memory", "100%", "w5", *SPOKEN, "-q", "--speak", "blind.wav")
    assert (blind.out, samples("blind.wav")) != (alone.out, samples("alone.wav"))


@pytest.mark.slow
def test_what_continue_adds_is_not_spoken(talk) -> None:
    outcome = talk("w5", "/continue")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 2
    assert len(files()) == 1


def test_ctrl_c_keeps_what_was_spoken_and_the_session(talk, monkeypatch) -> None:
    own, pressed = SoundOutput.write, []

    def press_at_the_first_sound(self, chunk) -> None:
        own(self, chunk)
        if not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SoundOutput, "write", press_at_the_first_sound)
    options = ("--speak", "a.wav", "-n", "3", "--greedy", "--voice-greedy", "--max-speech", "0.2")
    outcome = talk("w5 w6 w7", "/save one.json", "/retry", "w7", "/save two.json", options=options)
    assert outcome.code == 0, outcome.err
    assert "interrupted" in outcome.err
    assert 0 < len(samples("a-1.wav")) < len(samples("a-2.wav"))
    assert len(json.loads(Path("one.json").read_text())["messages"]) == 2
    two = json.loads(Path("two.json").read_text())["messages"]
    assert len(two) == 4
    assert two[1]["content"].strip()


def test_a_sound_that_cannot_be_written_leaves_the_text(talk, monkeypatch) -> None:
    def full(self, chunk) -> None:
        raise OutputError("Speech cannot be written to a-1.wav: the disk is full.")

    monkeypatch.setattr(SoundOutput, "write", full)
    outcome = talk("w5", "/save kept.json")
    assert outcome.code == 1
    assert "the disk is full" in outcome.err
    messages = json.loads(Path("kept.json").read_text())["messages"]
    assert messages[1]["content"] == outcome.out.splitlines()[0]
    assert files() == []


def test_a_player_is_silent_at_once(tmp_path, monkeypatch) -> None:
    player = tmp_path / "aplay"
    player.write_text("#!/bin/sh\ncat > /dev/null\nexec sleep 60\n")
    player.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    asked = iter([False, False, True])
    output = SoundOutput("play", 24_000, lambda: next(asked))
    output.write(np.zeros(8, np.float32))
    output.end()  # else this takes a minute
    assert next(asked, None) is None


def test_files_are_numbered_from_the_first_that_is_free(tmp_path) -> None:
    name = str(tmp_path / "an answer.wav")
    assert numbered("play") == "play"
    assert numbered(name) == str(tmp_path / "an answer-1.wav")
    (tmp_path / "an answer-1.wav").touch()
    (tmp_path / "an answer-3.wav").touch()
    assert numbered(name) == str(tmp_path / "an answer-2.wav")
    assert numbered("/dev/null") == "/dev/null"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--speak", "-"), "stdout has the text"),
        (("--speak", "x.mp3"), "WAV file"),
        (("--speak", "no/such/folder/a.wav"), "no/such/folder"),
        (("--voice", "ethan"), "--voice is of --speak"),
        (("--max-speech", "3"), "--max-speech is of --speak"),
        (("--speak", "a.wav", "--voice", "Etha"), "Did you mean 'ethan'"),
        (("--speak", "a.wav", "--component", "thinker"), "no talker"),
    ],
)
def test_what_cannot_be_is_told_at_once(options, words, talk) -> None:
    outcome = talk("w5", options=options)
    assert outcome.code in (1, 2)
    assert words in " ".join(outcome.err.split())
    assert files() == []
    assert outcome.out == ""


@pytest.mark.slow
def test_without_a_talker_there_is_no_speech_to_turn_on(talk) -> None:
    outcome = talk("/speak play", "/speak b.wav", "/set voice ethan", "/speak", options=("-n", "2"))
    assert outcome.code == 1
    assert outcome.err.count("no talker") == 3
    assert "Answers are not spoken." in outcome.err


def test_a_value_that_is_neither_on_nor_off() -> None:
    assert turn_sounds.switch("think", "Yes")
    assert not turn_sounds.switch("think", "off")
    with pytest.raises(UsageError, match="Say on or off"):
        turn_sounds.switch("think", "maybe")


def test_a_turn_is_spoken_again_in_place_of_its_answer(omni) -> None:
    with load(omni, expert_memory="100%") as model:
        conversation = Conversation(model, Processors(omni), sampling=Sampling(max_new_tokens=3, greedy=True))
        with pytest.raises(UsageError, match="Nothing was asked"):
            conversation.speak_again()
        silent = conversation.ask("w5")
        speaking = conversation.speak_again(voice=Voice(greedy=True, max_seconds=0.01))
        assert conversation.messages[1]["content"] == silent.text
        spoken = speaking.result()
        assert len(spoken.samples)
        assert conversation.messages[1:] == [{"role": "assistant", "content": spoken.completion.text}]
        kept = list(conversation.messages)
        conversation.speak_again(should_stop=lambda: True).result()
        assert conversation.messages == kept

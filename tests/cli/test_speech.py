"""`coterie generate --speak` and `coterie voices`."""

import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from coterie.cli import main

ASK = ("w5 w6 w7", "-n", "4", "--greedy", "--voice-greedy", "--max-speech", "0.03", "-q")


def samples(path: Path) -> list[int]:
    with wave.open(str(path)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 24_000)
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").tolist()


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "coterie", *arguments], capture_output=True, check=False, timeout=300, **options
    )


def test_a_file_and_what_json_says_of_it(omni, tmp_path, capsys) -> None:
    assert main(["generate", str(omni), *ASK, "--speak", str(tmp_path / "a.wav"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["speech"]
    spoken = samples(tmp_path / "a.wav")
    assert said["file"] == str(tmp_path / "a.wav")
    assert said["rate"] == 24_000
    assert said["finish_reason"] == "length"
    assert said["seconds"] == pytest.approx(len(spoken) / 24_000)
    assert 0.028 < said["seconds"] <= 0.03 + 24 / 24_000
    assert 0 < said["first_sound_s"] <= said["made_in_s"]
    assert any(spoken)


@pytest.mark.parametrize("greedy", [False, True], ids=["drawn", "greedy"])
def test_a_seed_that_the_voice_draws_with_has_an_effect(greedy, omni, tmp_path, capsys) -> None:
    how = ["--max-speech", "0.03", *(["--voice-greedy"] if greedy else [])]
    asked = ["w5", "-n", "2", "--greedy", "--seed", "1", *how]
    assert main(["generate", str(omni), *asked, "--speak", str(tmp_path / "a.wav")]) == 0
    assert ("--seed has no effect" in capsys.readouterr().err) == greedy


def test_a_seed_of_the_voices_own(omni, tmp_path, capsys) -> None:
    """The sound is drawn by it alone, and the text by the other one."""

    def spoken(name: str, *how: str) -> tuple[str, list[int]]:
        asked = ("w5", "-n", "2", "--max-speech", "0.03", "--speak", str(tmp_path / name), *how)
        assert main(["generate", str(omni), *asked]) == 0
        return capsys.readouterr().err, samples(tmp_path / name)

    seeded = ("--greedy", "--voice-seed")
    (said, one), (_, other) = (spoken(name, *seeded, seed) for name, seed in (("a.wav", "1"), ("b.wav", "2")))
    assert one != other
    assert "has no effect" not in said
    said, again = spoken("c.wav", *seeded, "1", "--seed", "5")
    assert again == one
    assert "--seed has no effect" in said
    said, _ = spoken("d.wav", *seeded, "1", "--voice-greedy")
    assert "--voice-seed has no effect" in said


def test_another_voice_speaks_otherwise(omni, tmp_path) -> None:
    for name in ("chelsie", "Ethan"):
        assert main(["generate", str(omni), *ASK, "--speak", str(tmp_path / f"{name}.wav"), "--voice", name]) == 0
    assert main(["generate", str(omni), *ASK, "--speak", str(tmp_path / "usual.wav")]) == 0
    assert samples(tmp_path / "chelsie.wav") != samples(tmp_path / "Ethan.wav")
    assert samples(tmp_path / "usual.wav") == samples(tmp_path / "Ethan.wav")


def test_speech_on_stdout_leaves_the_text_to_stderr(omni, tmp_path) -> None:
    assert main(["generate", str(omni), *ASK, "--speak", str(tmp_path / "a.wav")]) == 0
    done = run("generate", str(omni), *ASK, "--speak", "-")
    assert done.returncode == 0, done.stderr
    assert done.stdout[:4] == b"RIFF"
    assert np.frombuffer(done.stdout[44:], "<i2").tolist() == samples(tmp_path / "a.wav")
    assert done.stderr.strip()


def test_speech_is_played_by_the_first_player_that_is_there(omni, tmp_path) -> None:
    player = tmp_path / "aplay"
    player.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat > {tmp_path}/heard\n')
    player.chmod(0o755)
    path = f"{tmp_path}:/bin:/usr/bin"
    done = run("generate", str(omni), *ASK, "--speak", "play", env=os.environ | {"PATH": path})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().strip() == "-q -t wav -"
    assert (tmp_path / "heard").read_bytes()[:4] == b"RIFF"
    assert len((tmp_path / "heard").read_bytes()) > 44 + 48


def test_without_a_player_nothing_is_loaded(omni, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["generate", str(omni), *ASK, "--speak", "play"]) == 2
    assert "aplay" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--speak", "x.mp3"), r"WAV file, not 'x.mp3'"),
        (("--speak", "-", "--json"), "both write to stdout"),
        (("--voice", "ethan"), "--voice is of --speak"),
        (("--voice-greedy",), "--voice-greedy is of --speak"),
        (("--voice-seed", "1"), "--voice-seed is of --speak"),
        (("--speak", "a.wav", "--voice-seed", "-1"), "at least 0"),
        (("--max-speech", "3"), "--max-speech is of --speak"),
        (("--speak", "a.wav", "--max-speech", "0"), "seconds above 0"),
        (("--speak", "a.wav", "--voice", "Bob"), "'ethan'"),
        (("--speak", "no/such/folder/a.wav"), "no/such/folder"),
    ],
)
def test_what_cannot_be_is_told(options, said, omni, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", str(omni), "w5", "-n", "2", "--greedy", *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_talker_alone_is_no_model_to_talk_to(omni, tmp_path, capsys) -> None:
    assert main(["generate", str(omni), "w5", "--component", "talker"]) == 2
    assert "answers no prompt by itself" in capsys.readouterr().err
    assert main(["extract", str(omni), str(tmp_path / "talker"), "--component", "talker"]) == 0
    assert main(["generate", str(tmp_path / "talker"), "w5"]) == 2
    assert "answers no prompt by itself" in capsys.readouterr().err


def test_the_voices(omni, tmp_path, capsys) -> None:
    assert main(["voices", str(omni)]) == 0
    assert capsys.readouterr().out.split() == ["ethan", "chelsie"]
    assert main(["voices", str(omni), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["voices"] == ["ethan", "chelsie"]
    assert main(["voices", "bundled"]) == 1
    assert "does not speak" in capsys.readouterr().err
    assert main(["extract", str(omni), str(tmp_path / "thinker"), "--component", "thinker"]) == 0
    assert main(["voices", str(tmp_path / "thinker")]) == 1

"""Where an answer's sound goes: into a WAV file, to stdout, or out of the loudspeaker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.errors import OutputError, UsageError
from coterie.files.replacing import check_writable

if TYPE_CHECKING:
    from coterie.generation.frames import Samples
    from coterie.generation.speech import Speech, Voice
    from coterie.generation.wav_writer import WavWriter

STDOUT, PLAY = "-", "play"
_PLAYERS = (
    ("pw-cat", "--playback", "--media-role", "Communication", "-"),
    ("aplay", "-q", "-t", "wav", "-"),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error", "-i", "-"),
    ("mpv", "--no-terminal", "-"),
    ("play", "-q", "-t", "wav", "-"),
)
"""Programs that play a WAV file from their stdin, the first that is found."""

_POLL_S = 0.05

SpeakOption = Annotated[
    str | None,
    typer.Option(
        "--speak",
        metavar="FILE|-|play",
        show_default=False,
        help="Answer in speech too, while it is made: into a WAV file (24 kHz), to stdout (-, the text goes to "
        "stderr), or out of the loudspeaker (play). Needs a whole omni model; the prompt is put into its chat "
        "template.",
    ),
]
SpeakTurnsOption = Annotated[
    str | None,
    typer.Option(
        "--speak",
        metavar="FILE|play",
        show_default=False,
        help="Answer in speech too, while it is made: out of the loudspeaker (play), or into a WAV file for each "
        "answer, which is numbered: answer.wav becomes answer-1.wav, answer-2.wav. Needs a whole omni model.",
    ),
]
VoiceOption = Annotated[
    str | None,
    typer.Option("--voice", metavar="NAME", show_default=False, help="With --speak: one of `coterie voices MODEL`."),
]
VoiceGreedyOption = Annotated[
    bool,
    typer.Option("--voice-greedy", help="With --speak: the likeliest sound at each step. By default it is drawn."),
]
VoiceSeedOption = Annotated[
    int | None,
    typer.Option(
        "--voice-seed",
        metavar="N",
        show_default=False,
        help="With --speak: make the sound repeatable, by random numbers of its own. --seed is of text and sound.",
    ),
]
MaxSpeechOption = Annotated[
    float | None,
    typer.Option(
        "--max-speech", metavar="SECONDS", show_default=False, help="With --speak: end the sound after so long."
    ),
]


def check_speech(
    speak: str | None, voice: str | None, *, greedy: bool, seed: int | None, longest_s: float | None
) -> Voice | None:
    """How an answer is to be spoken, and whether it would be heard in the end; None if it is not.

    Raises:
        UsageError: If an option has no effect, or sound cannot go there.
        OutputError: If the file cannot be written.
    """
    if speak is not None:
        check_target(speak)
    return checked_voice(speak, voice, greedy=greedy, seed=seed, longest_s=longest_s)


def checked_voice(
    speak: str | None, voice: str | None, *, greedy: bool, seed: int | None, longest_s: float | None
) -> Voice | None:
    """How answers are to be spoken; None if they are not.

    Raises:
        UsageError: If an option has no effect, or no such value.
    """
    for name, given in (
        ("--voice", voice),
        ("--voice-greedy", greedy or None),
        ("--voice-seed", seed),
        ("--max-speech", longest_s),
    ):
        if given is not None and speak is None:
            raise UsageError(f"{name} is of --speak, which was not given.", advice="Add --speak FILE.")
    if speak is None:
        return None
    from coterie.generation.speech import Voice

    return Voice(name=voice, greedy=greedy, seed=seed, max_seconds=longest_s)


def check_target(speak: str) -> None:
    """Whether sound can go there.

    Args:
        speak: What --speak says.

    Raises:
        UsageError: If it cannot.
        OutputError: If the file cannot be written.
    """
    if speak == PLAY:
        _player()
    elif speak != STDOUT:
        if Path(speak).suffix.lower() != ".wav" and not Path(speak).is_char_device():
            raise UsageError(
                f"Speech is written as a WAV file, not {Path(speak).name!r}.",
                advice="Write .wav, `-` for stdout or `play` for the loudspeaker; ffmpeg converts it.",
                path=speak,
            )
        check_writable(speak)
    elif sys.stdout.isatty():
        raise UsageError("Speech is not written to a terminal.", advice="Pipe it on, or name a file.")


def check_target_of_turns(speak: str) -> None:
    """Whether the sound of several answers can go there; raises as :func:`check_target`."""
    if speak == STDOUT:
        raise UsageError(
            "In a conversation stdout has the text.", advice="Write a file, or `play` for the loudspeaker."
        )
    check_target(numbered(speak))


def numbered(speak: str) -> str:
    """Where the next answer's sound goes: the first file of that name with a number that there is not yet.

    Args:
        speak: What --speak says.
    """
    path = Path(speak).expanduser()
    if speak == PLAY or path.is_char_device():
        return speak
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    return str(next(one for one in names if not one.exists()))


class SoundOutput:
    """Takes an answer's sound as it comes; nothing is opened before there is some.

    Args:
        target: What --speak says.
        rate: Samples per second.
        should_stop: Whether a player is to be silent at once, rather than say what it has been given.
    """

    def __init__(self, target: str, rate: int, should_stop: Callable[[], bool]) -> None:
        self._target = target
        self._rate = rate
        self._should_stop = should_stop
        self._stack = ExitStack()
        self._writer: WavWriter | None = None

    def write(self, samples: Samples) -> None:
        """Takes the next samples.

        Raises:
            OutputError: If they cannot be written.
        """
        if self._writer is None:
            self._writer = self._stack.enter_context(_opened(self._target, self._rate, self._should_stop))
        try:
            self._writer.write(samples)
        except BrokenPipeError as error:
            if self._target == STDOUT:
                raise  # whoever read it wants no more, as with text
            raise OutputError("The player ended before the speech did.", path=self._target) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"Speech cannot be written to {self._target}: {reason}.", path=self._target) from error

    def end(self) -> None:
        """Closes what was opened; a file is whole then, whatever ended the speech."""
        self._stack.close()


@contextmanager
def _opened(target: str, rate: int, should_stop: Callable[[], bool]) -> Iterator[WavWriter]:
    from coterie.generation.wav_writer import WavWriter, wav_file

    if target == STDOUT:
        yield WavWriter(sys.stdout.buffer, rate)
    elif target == PLAY:
        # Ctrl-C is for us: it ends the speech, and then the player.
        with subprocess.Popen(
            _player(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as player:  # fmt: skip
            assert player.stdin is not None
            try:
                yield WavWriter(player.stdin, rate)
            finally:
                with suppress(BrokenPipeError):
                    player.stdin.close()
                _play_out(player, should_stop)
    else:
        with wav_file(target, rate) as writer:
            yield writer


def _play_out(player: subprocess.Popen[bytes], should_stop: Callable[[], bool]) -> None:
    """Waits until all is played, or nobody wants to hear more."""
    while not should_stop():
        with suppress(subprocess.TimeoutExpired):
            player.wait(_POLL_S)
            return
    player.terminate()


def _player() -> list[str]:
    """The command that plays what it reads.

    Raises:
        UsageError: If there is none.
    """
    for command in _PLAYERS:
        if shutil.which(command[0]) is not None:
            return list(command)
    names = ", ".join(command[0] for command in _PLAYERS)
    raise UsageError(
        f"There is no program that plays sound ({names}).",
        advice="Install one of them, or write a file with --speak answer.wav.",
    )


def speech_as_json(target: str, speech: Speech, rate: int) -> dict[str, object]:
    """What --json says of it."""
    return {
        "file": None if target in (STDOUT, PLAY) else os.fspath(target),
        "seconds": len(speech.samples) / rate,
        "rate": rate,
        "finish_reason": speech.finish_reason,
        "made_in_s": speech.seconds,
        "first_sound_s": speech.first_s,
    }


def speech_summary(speech: Speech, rate: int) -> str:
    """One line: how long, how fast, and why it ended if that was not its own end."""
    seconds = len(speech.samples) / rate
    if not seconds:
        return "nothing was spoken"
    line = f"speech {seconds:.1f} s, made in {speech.seconds:.1f} s ({speech.finish_reason})"
    return line if speech.first_s is None else f"{line}, first sound {speech.first_s:.1f} s after the first word"

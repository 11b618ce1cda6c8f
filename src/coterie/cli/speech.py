"""Where an answer's sound goes: into a WAV file, to stdout, or out of the loudspeaker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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
VoiceOption = Annotated[
    str | None,
    typer.Option("--voice", metavar="NAME", show_default=False, help="With --speak: one of `coterie voices MODEL`."),
]
VoiceGreedyOption = Annotated[
    bool,
    typer.Option("--voice-greedy", help="With --speak: the likeliest sound at each step. By default it is drawn."),
]
MaxSpeechOption = Annotated[
    float | None,
    typer.Option(
        "--max-speech", metavar="SECONDS", show_default=False, help="With --speak: end the sound after so long."
    ),
]


def check_speech(speak: str | None, voice: str | None, *, greedy: bool, longest_s: float | None) -> Voice | None:
    """How an answer is to be spoken; None if it is not.

    Raises:
        UsageError: If an option has no effect, or nothing could be heard in the end.
    """
    for name, given in (("--voice", voice), ("--voice-greedy", greedy or None), ("--max-speech", longest_s)):
        if given is not None and speak is None:
            raise UsageError(f"{name} is of --speak, which was not given.", advice="Add --speak FILE.")
    if speak is None:
        return None
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
    from coterie.generation.speech import Voice

    return Voice(name=voice, greedy=greedy, max_seconds=longest_s)


class SoundOutput:
    """Takes an answer's sound as it comes; nothing is opened before there is some.

    Args:
        target: What --speak says.
        rate: Samples per second.
    """

    def __init__(self, target: str, rate: int) -> None:
        self._target = target
        self._rate = rate
        self._stack = ExitStack()
        self._writer: WavWriter | None = None

    def write(self, samples: Samples) -> None:
        """Takes the next samples.

        Raises:
            OutputError: If they cannot be written.
        """
        if self._writer is None:
            self._writer = self._stack.enter_context(_opened(self._target, self._rate))
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
def _opened(target: str, rate: int) -> Iterator[WavWriter]:
    from coterie.generation.wav_writer import WavWriter, wav_file

    if target == STDOUT:
        yield WavWriter(sys.stdout.buffer, rate)
    elif target == PLAY:
        # Ctrl-C ends the speech; the player says what is there, and ends by itself.
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
    else:
        with wav_file(target, rate) as writer:
            yield writer


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

"""Answers in speech: who is to speak, and how sound is written into an answer."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING

from coterie.generation.frames import Samples
from coterie.generation.speech import SPEECH_RATE, Voice
from coterie.generation.wav_writer import WavWriter, pcm16
from coterie.server.refusals import Refusal
from coterie.server.schemas.speech import SoundFormat, name_of

if TYPE_CHECKING:
    from coterie.server.schemas.chat import ChatRequest
    from coterie.server.service import Service

_UNIT = 6
"""Bytes that are whole samples and, in base64, whole characters: pieces of so many can be joined before or after."""


def asked_voice(service: Service, asked: ChatRequest) -> Voice | None:
    """How an answer is to be spoken; None if it is not.

    Raises:
        Refusal: If the model does not speak, or not in this voice.
    """
    if not asked.speaks:
        return None
    more = asked.coterie
    return voice_named(
        service,
        None if asked.audio is None else name_of(asked.audio.voice),
        param="audio.voice",
        asking="modalities",
        greedy=more is not None and bool(more.voice_greedy),
        seed=None if more is None else more.voice_seed,
        max_seconds=None if more is None else more.max_speech,
    )


def voice_named(
    service: Service,
    name: str | None,
    *,
    param: str,
    asking: str | None = None,
    greedy: bool = False,
    seed: int | None = None,
    max_seconds: float | None = None,
) -> Voice:
    """A voice of the model that is served.

    Args:
        service: Who serves it.
        name: The voice; None for the first.
        param: The field that names it.
        asking: The field that asks for speech; None where the address does.
        greedy: Whether the likeliest sound is taken at each step.
        seed: Random numbers of its own for the sound.
        max_seconds: Longest sound.

    Raises:
        Refusal: If the model does not speak, or not in this voice.
    """
    if not service.voices:
        raise Refusal(
            400, f"{f'{asking}: ' if asking else ''}{service.silence}", param=asking, code="unsupported",
        )  # fmt: skip
    if not service.prompts.can_chat:
        raise Refusal(
            400, f"{service.name} has no chat template, and its talker needs one to know whose turn it is.",
            param=asking, code="unsupported",
        )  # fmt: skip
    if name is not None and name.lower() not in service.voices:
        raise Refusal(
            400, f"{param}: there is no voice {name!r} here; there is {', '.join(service.voices)}.", param=param
        )
    return Voice(name=name, greedy=greedy, seed=seed, max_seconds=max_seconds)


def written(samples: Samples, kind: SoundFormat) -> bytes:
    """A whole sound.

    Args:
        samples: float32 [samples] in [-1, 1] at :data:`~coterie.generation.speech.SPEECH_RATE`.
        kind: What it is written as.
    """
    if kind == "pcm16":
        return pcm16(samples)
    file = BytesIO()
    writer = WavWriter(file, SPEECH_RATE)
    writer.write(samples)
    writer.end()
    return file.getvalue()


def head_of(kind: SoundFormat) -> bytes:
    """What a sound begins with whose length is not known yet: of WAV, a header that says so."""
    file = BytesIO()
    if kind == "wav":
        WavWriter(file, SPEECH_RATE)
    return file.getvalue()


class SoundPieces:
    """A sound that comes in pieces, each in base64. Decoded and joined, or joined and decoded, they are the same.

    Args:
        kind: What it is written as.
    """

    def __init__(self, kind: SoundFormat) -> None:
        self._rest = head_of(kind)

    def take(self, samples: Samples) -> str:
        """The next piece; what does not fill a unit waits for the one after."""
        data = self._rest + pcm16(samples)
        whole = len(data) - len(data) % _UNIT
        self._rest = data[whole:]
        return encoded(data[:whole])

    def end(self) -> str:
        """The last piece; often there is nothing in it."""
        data, self._rest = self._rest, b""
        return encoded(data)


def encoded(data: bytes) -> str:
    """Bytes in base64."""
    return base64.b64encode(data).decode("ascii")

"""A text that is read out, in OpenAI's shapes: as the bytes of a sound, and as events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from coterie.generation.tickets import Done, Failed, SoundChunk
from coterie.generation.wav_writer import pcm16
from coterie.server.openai_answers import told_of_speech
from coterie.server.refusals import refusal_of
from coterie.server.schemas.speech import SoundFormat
from coterie.server.speaking import SoundPieces, head_of
from coterie.server.streams import event

if TYPE_CHECKING:
    from coterie.server.choices import Choices, Numbered


class SoundBytes:
    """Writes the sound alone. What fails is raised.

    Args:
        kind: What it is written as.
    """

    def __init__(self, kind: SoundFormat) -> None:
        self._kind = kind

    async def __call__(self, events: AsyncGenerator[Numbered], choices: Choices) -> AsyncGenerator[bytes]:
        """The sound, piece by piece; of a text of which nothing is spoken, what a sound begins with."""
        head = head_of(self._kind)
        async for _, told in events:
            match told:
                case SoundChunk():
                    yield head + pcm16(told.samples)
                    head = b""
                case Failed(error):
                    raise error
                case _:
                    pass
        if head:
            yield head


class SpeechEvents:
    """Writes events: pieces of the sound in base64, then what it took.

    Args:
        kind: What the sound is written as.
    """

    def __init__(self, kind: SoundFormat) -> None:
        self._pieces = SoundPieces(kind)

    async def __call__(self, events: AsyncGenerator[Numbered], choices: Choices) -> AsyncGenerator[bytes]:
        """The events."""
        async for _, told in events:
            match told:
                case SoundChunk():
                    if data := self._pieces.take(told.samples):
                        yield _delta(data)
                case Done():
                    if data := self._pieces.end():
                        yield _delta(data)
                    yield _done(told)
                case Failed(error):
                    yield event(refusal_of(error).body("openai", choices.request_id))
                case _:
                    pass


def _delta(data: str) -> bytes:
    return event({"type": "speech.audio.delta", "audio": data})


def _done(done: Done) -> bytes:
    speech, read = done.speech, len(done.completion.token_ids)
    assert speech is not None
    return event({
        "type": "speech.audio.done",
        "usage": {"input_tokens": read, "output_tokens": speech.frames, "total_tokens": read + speech.frames},
        "coterie": {"speech": told_of_speech(speech)},
    })  # fmt: skip

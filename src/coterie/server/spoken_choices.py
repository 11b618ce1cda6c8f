"""An answer in speech, in OpenAI's shape: its text is the transcript of its sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from coterie.server.identity import current, new_id
from coterie.server.openai_choices import ChatAnswers, Choice, delta_of, finish_of
from coterie.server.schemas.speech import SoundFormat
from coterie.server.speaking import SoundPieces, encoded, written
from coterie.server.transcripts import LASTS_S

if TYPE_CHECKING:
    from coterie.generation.tickets import Done, Piece, SoundChunk
    from coterie.hf.token_bytes import TokenBytes
    from coterie.server.schemas.answers import ChatChoice, Finish

Keeps = Callable[[str, str, float], None]
"""Remembers what was said: the id of the sound, the text, and until when."""


class SpokenAnswers(ChatAnswers):
    """Writes an answer that is spoken.

    Args:
        tokens: The model's tokens one by one.
        kind: What the sound is written as.
        keep: Remembers what was said.
    """

    def __init__(self, tokens: TokenBytes, *, kind: SoundFormat, keep: Keeps) -> None:
        super().__init__(tokens)
        self._kind = kind
        self._keep = keep
        self._pieces = SoundPieces(kind)
        self._id = new_id("audio_")
        self._expires_at = current().created + LASTS_S

    def choice(self, number: int, done: Done) -> ChatChoice:
        """A whole answer. If there was nothing to say, it has its text alone."""
        choice = super().choice(number, done)
        speech, message = done.speech, choice["message"]
        if speech is None or not len(speech.samples):
            message["audio"] = None
            return choice
        message["audio"] = {
            "id": self._id,
            "data": encoded(written(speech.samples, self._kind)),
            "transcript": done.completion.text,
            "expires_at": self._expires_at,
        }
        message["content"] = None
        self._keep(self._id, done.completion.text, self._expires_at)
        return choice

    def piece(self, number: int, piece: Piece) -> Iterator[Choice]:
        """Some of the text."""
        if piece.part == "text":
            yield self._audio(number, transcript=piece.text)
        else:
            yield from super().piece(number, piece)

    def sound(self, number: int, sound: SoundChunk) -> Iterator[Choice]:
        """Some of the sound."""
        if data := self._pieces.take(sound.samples):
            yield self._audio(number, data=data)

    def ending(self, number: int, done: Done) -> Iterator[Choice]:
        """The end of the sound, how long it is known, and why it ended."""
        if done.speech is not None and len(done.speech.samples):
            if data := self._pieces.end():
                yield self._audio(number, data=data)
            self._keep(self._id, done.completion.text, self._expires_at)
            yield self._audio(number, expires_at=self._expires_at)
        yield from super().ending(number, done)

    def _audio(self, number: int, **told: Any) -> Choice:
        return delta_of(number, {"audio": {"id": self._id, **told}})

    def _finish(self, done: Done) -> Finish:
        cut = done.speech is not None and done.speech.finish_reason in ("length", "context")
        return "length" if cut else finish_of(done.completion)

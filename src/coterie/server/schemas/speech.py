"""What requests may say of speech: of an answer, of an answer before, and of a text that is to be read out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from coterie.server.refusals import Refusal
from coterie.server.schemas.fields import Fields, ModelName, NotYet, One

Modality = Literal["text", "audio"]
Modalities = Annotated[list[Modality], Field(min_length=1, max_length=4)]

SoundFormat = Literal["wav", "pcm16"]
"""What sound is written as: 16-bit samples, with a WAV header or without."""

_OTHER_FORMATS = ("aac", "flac", "mp3", "opus")
"""What OpenAI's clients may ask for, and no encoder is here for."""

LONGEST_INPUT = 4096
LONGEST_ID = 64
LONGEST_VOICE = 64
LONGEST_TRANSCRIPT = 16 << 20
MOST_SECONDS = 3600.0
"""More than any model speaks."""


def written_as(value: Any, param: str, known: tuple[str, ...] = ("wav", "pcm16")) -> Any:
    """A format that sound is written as.

    Raises:
        Refusal: If it is one that others have.
    """
    if isinstance(value, str) and value not in known and value in (*_OTHER_FORMATS, "wav", "pcm", "pcm16"):
        raise Refusal(
            400, f"{param}: {value} is not supported here; {' and '.join(known)} are.", param=param, code="unsupported"
        )
    return value


def _of_chat(value: Any) -> Any:
    return written_as(value, "audio.format")


class VoiceId(Fields):
    """A voice by its id, which is its name here."""

    id: Annotated[str, Field(max_length=LONGEST_VOICE)]


VoiceName = Annotated[str, Field(max_length=LONGEST_VOICE)]


def name_of(voice: str | VoiceId | None) -> str | None:
    """The name of a voice, however it is said."""
    return voice.id if isinstance(voice, VoiceId) else voice


class ChatAudio(Fields):
    """How an answer is spoken."""

    voice: VoiceName | VoiceId | None = None
    """One of the model's voices; by default the first that it lists."""
    format: Annotated[SoundFormat, BeforeValidator(_of_chat)] | None = None
    """What the sound is written as; by default ``wav``, in a stream ``pcm16``."""


class SpokenAudio(Fields):
    """The sound of an answer before, as the client got it. What was said in it is what the model reads."""

    id: Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
    transcript: Annotated[str, Field(max_length=LONGEST_TRANSCRIPT)] | None = None
    data: Annotated[str | None, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]})] = None
    """Taken so that a whole message may be sent back; it is not read."""
    expires_at: int | None = None


class SpeechCoterieFields(Fields):
    """What no other server has, and speech has."""

    max_speech: Annotated[float, Field(gt=0, le=MOST_SECONDS)] | None = None
    """Seconds after which the sound ends."""
    voice_greedy: bool | None = None
    """Whether the likeliest sound is taken at each step."""


def _of_speech(value: Any) -> Any:
    return written_as(value, "response_format", ("wav", "pcm"))


class SpeechRequest(Fields):
    """A text that is to be read out."""

    input: Annotated[str, Field(min_length=1, max_length=LONGEST_INPUT)]
    model: ModelName | None = None
    voice: VoiceName | VoiceId | None = None
    response_format: Annotated[Literal["wav", "pcm"], BeforeValidator(_of_speech)] = "wav"
    stream_format: Literal["audio", "sse"] = "audio"
    speed: One = None
    instructions: NotYet = None
    seed: Annotated[int, Field(ge=-1, lt=2**63)] | None = None
    coterie: SpeechCoterieFields | None = None

    @property
    def kind(self) -> SoundFormat:
        """What the sound is written as."""
        return "wav" if self.response_format == "wav" else "pcm16"

"""Sounds as text and texts as sound, as OpenAI's clients ask.

A model that hears is asked to write down what it hears. One that speaks is given what it is to say as its answer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse

from coterie.generation.sampling import Sampling
from coterie.server.media import Media
from coterie.server.operations import Operation
from coterie.server.refusals import Refusal
from coterie.server.schemas.answers import Transcription
from coterie.server.schemas.fields import read
from coterie.server.schemas.speech import SpeechCoterieFields, SpeechRequest, name_of
from coterie.server.schemas.transcriptions import TranscriptionRequest
from coterie.server.service import Service
from coterie.server.speaking import voice_named
from coterie.server.speech_answers import SoundBytes, SpeechEvents
from coterie.server.streams import COMMENT_PING
from coterie.server.wishes import Wish

QUESTION = "Transcribe the audio into text."
"""What the model is asked, after the sound."""

_KINDS = {"wav": "audio/wav", "pcm": "audio/pcm"}
"""What each format of sound is called in HTTP."""


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/v1/audio/transcriptions", summary="Writes down what is said in a sound.",
            handler=_transcribe, asked=TranscriptionRequest, answered=Transcription, form=True,
        ),
        Operation(
            path="/v1/audio/speech", summary="Reads a text out.", handler=_speak, asked=SpeechRequest, streams=True,
            kinds=tuple(_KINDS.values()),
        ),
    ]  # fmt: skip


async def _transcribe(service: Service, request: Request) -> Any:
    if "audio" not in service.modalities:
        raise Refusal(400, f"{service.name} takes no sounds: it has no audio encoder.", code="unsupported")
    media = Media()
    async with service.bodies.form(request) as form:
        asked = read(TranscriptionRequest, {**form.fields, **form.files})
        service.check_model(asked.model)
        sound = media.add_sound_file("file", asked.file)
    content = [{"type": "audio", "path": sound}, {"type": "text", "text": QUESTION}]
    wish = Wish(
        prepare=partial(service.prompts.of_messages, [{"role": "user", "content": content}], media),
        sampling=Sampling(max_new_tokens=service.most(None), temperature=asked.temperature),
    )
    (done,) = await service.whole(request, [wish])
    completion = done.completion
    text = completion.text.strip()
    if asked.response_format == "text":
        return PlainTextResponse(f"{text}\n")
    prompt, new = completion.prompt_tokens, len(completion.token_ids)
    usage = {
        "type": "tokens", "input_tokens": prompt, "output_tokens": new, "total_tokens": prompt + new,
        "input_token_details": {
            "audio_tokens": completion.sound_tokens, "text_tokens": prompt - completion.sound_tokens,
        },
    }  # fmt: skip
    return {"text": text, "usage": usage}


async def _speak(service: Service, request: Request) -> Any:
    async with service.bodies.json(request) as body:
        asked = read(SpeechRequest, body)
        service.check_model(asked.model)
    more = asked.coterie or SpeechCoterieFields()
    voice = voice_named(
        service, name_of(asked.voice), param="voice", greedy=bool(more.voice_greedy), max_seconds=more.max_speech
    )
    wish = Wish(
        prepare=partial(service.prompts.of_speech, asked.input),
        sampling=Sampling(max_new_tokens=None, seed=asked.seed),
        voice=voice,
    )
    if asked.stream_format == "sse":
        return await service.stream(request, [wish], SpeechEvents(asked.kind), ping=COMMENT_PING)
    return await service.sound(request, wish, SoundBytes(asked.kind), kind=_KINDS[asked.response_format])

"""Sounds as text, as OpenAI's clients ask: a model that hears is asked to write down what it hears."""

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
from coterie.server.schemas.transcriptions import TranscriptionRequest
from coterie.server.service import Service
from coterie.server.wishes import Wish

QUESTION = "Transcribe the audio into text."
"""What the model is asked, after the sound."""


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/v1/audio/transcriptions", summary="Writes down what is said in a sound.",
            handler=_transcribe, asked=TranscriptionRequest, answered=Transcription, form=True,
        )
    ]  # fmt: skip


async def _transcribe(service: Service, request: Request) -> Any:
    if "audio" not in service.modalities:
        raise Refusal(501, f"{service.name} takes no sounds: it has no audio encoder.", code="unsupported")
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

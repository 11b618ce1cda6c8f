"""Answers in OpenAI's shapes, whole and as streams: what stands around the choices."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from coterie.generation.tickets import Done, Failed, Piece
from coterie.server.identity import current, new_id
from coterie.server.openai_choices import ChatAnswers, Choice, TextAnswers
from coterie.server.progress import PromptProgress
from coterie.server.refusals import refusal_of
from coterie.server.schemas.answers import Chunk, More, MoreOfOne, Usage
from coterie.server.streams import DONE, event

if TYPE_CHECKING:
    from coterie.server.choices import Choices, Numbered
    from coterie.server.service import Service

Answers = ChatAnswers | TextAnswers


def whole(service: Service, answers: Answers, done: Sequence[Done], *, each: int | None = None) -> dict[str, Any]:
    """All that was answered.

    Args:
        service: Who answers.
        answers: How a choice is written.
        done: The choices.
        each: How many of them are to the same prompt; all of them by default.
    """
    return {
        **_same(service, answers.prefix, answers.whole),
        "choices": [answers.choice(number, one.completion) for number, one in enumerate(done)],
        "usage": _usage(done, each or len(done)),
        "coterie": _more(done),
    }


class OpenAIStream:
    """Writes a stream: the role first, then pieces, then why it ended, and, if it is wanted, what it took.

    Args:
        service: Who answers.
        answers: How a choice is written.
        usage: Whether what it took is told at the end.
        each: How many choices are to the same prompt; all of them by default.
        progress: Whether it is told how far prompts have been read.
    """

    def __init__(
        self, service: Service, answers: Answers, *, usage: bool, each: int | None = None, progress: bool = False
    ) -> None:
        self._answers = answers
        self._progress = progress
        self._usage = usage
        self._each = each
        self._same: Chunk = _same(service, answers.prefix, answers.chunk)

    async def __call__(self, events: AsyncGenerator[Numbered], choices: Choices) -> AsyncGenerator[bytes]:
        """The events of the stream."""
        failed = False
        for number in range(choices.count):
            for one in self._answers.opening(number):
                yield self._chunk(one)
        reading = PromptProgress(choices, wanted=self._progress)
        async for number, told in events:
            if (read := reading.of(number, told)) is not None:
                yield self._chunk(self._answers.nothing(number), prompt_progress=read)
            match told:
                case Piece():
                    for one in self._answers.piece(number, told):
                        yield self._chunk(one)
                case Done(completion):
                    *before, last = self._answers.ending(number, completion)
                    for one in before:
                        yield self._chunk(one)
                    yield self._chunk(last, coterie=_more_of_one(told))
                case Failed(error):
                    failed = True
                    yield event(refusal_of(error).body("openai", choices.request_id))
                case _:
                    pass
        if self._usage and not failed:
            done = [choices.done[number] for number in sorted(choices.done)]
            yield event({**self._same, "choices": [], "usage": _usage(done, self._each or len(done))})
        yield DONE

    def _chunk(self, choice: Choice, **more: Any) -> bytes:
        chunk = {**self._same, "choices": [choice]}
        if self._usage:
            chunk["usage"] = None
        return event({**chunk, **more})


def _same(service: Service, prefix: str, kind: str) -> dict[str, Any]:
    """What all parts of an answer have."""
    return {
        "id": new_id(f"{prefix}-"),
        "object": kind,
        "created": current().created,
        "model": service.name,
        "system_fingerprint": service.fingerprint,
    }


def _more(done: Sequence[Done]) -> More:
    """What OpenAI's shape has no room for: of the first choice, and where there are several, of each."""
    first, *others = [_more_of_one(one) for one in done]
    more: More = {"finish_reason": first["finish_reason"]}
    if "provenance" in first:
        more["provenance"] = first["provenance"]
    if others:
        more["choices"] = [first, *others]
    return more


def _more_of_one(done: Done) -> MoreOfOne:
    more: MoreOfOne = {"finish_reason": done.completion.finish_reason}
    if done.provenance is not None:
        more["provenance"] = _without_none(asdict(done.provenance))
    return more


def _without_none(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in figures.items()
        if value is not None
    }


def _usage(done: Sequence[Done], each: int) -> Usage:
    """Tokens of all choices, and of each prompt once."""
    prompts = [[one.completion for one in done[begin : begin + each]] for begin in range(0, len(done), each)]
    prompt = sum(one.prompt_tokens for one, *_ in prompts)
    new = sum(len(one.completion.token_ids) for one in done)
    # What the first of a prompt's answers has computed, the others find.
    cached = sum(min(one.reused_tokens for one in choices) for choices in prompts)
    written = sum(max(one.kept_tokens for one in choices) for choices in prompts)
    pictures, sounds = sum(one.picture_tokens for one, *_ in prompts), sum(one.sound_tokens for one, *_ in prompts)
    videos = sum(one.video_tokens for one, *_ in prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {
            "audio_tokens": sounds,
            "cache_write_tokens": written,
            "cached_tokens": cached,
            "image_tokens": pictures,
            "text_tokens": prompt - pictures - sounds - videos,
            "video_tokens": videos,
        },
    }

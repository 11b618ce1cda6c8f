"""What `coterie generate` does with an open model: continues or answers one prompt, and writes what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from coterie.cli.answer import AnswerPrinter, summary
from coterie.cli.console import print_json, print_note
from coterie.cli.generation_options import print_unused
from coterie.cli.interrupts import EXIT_INTERRUPTED, ctrl_c_requests_stop
from coterie.cli.speech import STDOUT, SoundOutput, speech_as_json, speech_summary
from coterie.errors import InputError

if TYPE_CHECKING:
    from coterie.engine.salience import SalienceTrace
    from coterie.generation.chat_options import ChatOptions
    from coterie.generation.completion import Completion
    from coterie.generation.opened import OpenModel
    from coterie.generation.sampling import Sampling
    from coterie.generation.speech import Voice
    from coterie.generation.video_options import VideoOptions

JSON_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be generated and what is to be written beside it."""

    prompt: str
    images: tuple[Path, ...]
    audios: tuple[Path, ...]
    videos: tuple[Path, ...]
    video_options: VideoOptions
    sampling: Sampling
    chat: bool | None
    system: str | None
    template: ChatOptions
    speech: str | None
    voice: Voice | None
    stats: Path | None
    per_token: bool
    trace: Path | None
    profile: str | None
    domain: str
    salience: Path | None
    adapt_experts: str | None


def run(opened: OpenModel, request: Request, *, as_json: bool, quiet: bool) -> None:
    """Generates what was asked for, shows it and writes what is to be written beside it."""
    printer = None if as_json else AnswerPrinter(quiet=quiet, beside=request.speech == STDOUT)
    if not quiet:
        print_unused(request.sampling, opened.model, request.voice)
    with ctrl_c_requests_stop() as pressed, _recorded(opened, request):
        completion, extra = _generate(opened, request, printer, pressed, quiet=quiet)
    statistics = opened.runtime.stats()
    if printer is None:
        print_json(_as_json(opened, request, completion) | extra)
    else:
        printer.end(completion)
    if not quiet:
        print_note(summary(completion, statistics))
    if "interrupted" in (completion.finish_reason, extra.get("speech", {}).get("finish_reason")):
        raise typer.Exit(EXIT_INTERRUPTED)


def _generate(
    opened: OpenModel,
    request: Request,
    printer: AnswerPrinter | None,
    pressed: Callable[[], bool],
    *,
    quiet: bool,
) -> tuple[Completion, dict[str, Any]]:
    """Generates; returns the completion, and what speech adds to the JSON."""
    from coterie.generation.conversation import Conversation

    if not request.chat:
        return _continue(opened, request, printer, pressed, quiet=quiet), {}
    talk = Conversation(
        opened.model,
        opened.processors,
        sampling=request.sampling,
        system=request.system,
        options=request.template,
        reuse=False,
        video_options=request.video_options,
    )
    if not talk.templated:
        why = ", and its talker needs one to know whose turn it is" if request.speech else ""
        raise InputError(
            f"{opened.runtime.source.name} has no chat template{why}.",
            advice=f"Leave {'--speak' if request.speech else '--chat'} out, or pass a template (--chat-template).",
        )
    if request.speech is not None:
        return _speak(opened, request, talk.messages, printer, pressed, request.speech, quiet=quiet)
    done = talk.ask(
        request.prompt,
        images=request.images,
        audios=request.audios,
        videos=request.videos,
        on_text=None if printer is None else printer.text,
        on_reasoning=None if printer is None else printer.reasoning,
        should_stop=pressed,
    )
    return done, {"reasoning": done.reasoning, "tool_calls": [asdict(call) for call in done.tool_calls]}


def _continue(
    opened: OpenModel, request: Request, printer: AnswerPrinter | None, pressed: Callable[[], bool], *, quiet: bool
) -> Completion:
    """Continues the prompt as it is."""
    from coterie.generation.chat import can_chat
    from coterie.generation.completion import complete
    from coterie.generation.inputs import build_inputs

    if request.chat is None and not quiet and can_chat(opened.processors):
        print_note(
            f"{opened.runtime.source.name} has a chat template, which was not used: the prompt is continued as it "
            f"is. --chat answers it, --raw leaves this remark out."
        )
    return complete(
        opened.model,
        opened.processors.tokenizer,
        build_inputs(
            opened.processors,
            request.prompt,
            images=request.images,
            audios=request.audios,
            videos=request.videos,
            video_options=request.video_options,
        ),
        request.sampling,
        on_text=None if printer is None else printer.text,
        should_stop=pressed,
    )


def _speak(
    opened: OpenModel,
    request: Request,
    before: Sequence[Mapping[str, Any]],
    printer: AnswerPrinter | None,
    pressed: Callable[[], bool],
    target: str,
    *,
    quiet: bool,
) -> tuple[Completion, dict[str, Any]]:
    """Answers in speech, too, which is heard or written while it is made."""
    from coterie.generation.chat import chat_inputs, user_message
    from coterie.generation.speaking import Speaking

    message = user_message(
        request.prompt, images=request.images, audios=request.audios, videos=request.videos
    )  # fmt: skip
    speaking = Speaking(
        opened.model,
        opened.processors.tokenizer,
        chat_inputs(opened.processors, [*before, message], request.template, video_options=request.video_options),
        request.sampling,
        voice=request.voice,
        should_stop=pressed,
    )
    sound = SoundOutput(target, speaking.rate, pressed)
    try:
        speech = speaking.tell(on_text=None if printer is None else printer.text, on_sound=sound.write)
    finally:
        sound.end()
    if not quiet:
        print_note(speech_summary(speech, speaking.rate))
    return speech.completion, {"speech": speech_as_json(target, speech, speaking.rate)}


@contextmanager
def _recorded(opened: OpenModel, request: Request) -> Iterator[None]:
    """Writes statistics, trace and profile, also after Ctrl-C or an error."""
    if request.per_token:
        opened.runtime.record_tokens()
    with ExitStack() as stack:
        if request.stats is not None:
            stack.callback(opened.runtime.write_stats, request.stats)
        if request.trace is not None:
            stack.enter_context(opened.runtime.record_trace(request.trace))
        if request.profile is not None:
            stack.enter_context(opened.runtime.record_profile(request.profile, domain=request.domain))
        if request.adapt_experts is not None:
            stack.enter_context(opened.runtime.adapt_experts(request.adapt_experts))
        if request.salience is not None:
            trace = stack.enter_context(opened.runtime.salience())
            stack.callback(_save_salience, trace, request.salience)
        yield


def _save_salience(trace: SalienceTrace, path: Path) -> None:
    """Writes what there is: an error before the first token leaves nothing, and saying so would hide it."""
    if trace.tokens:
        trace.save(path)


def _as_json(opened: OpenModel, request: Request, completion: Completion) -> dict[str, Any]:
    stats = opened.runtime.stats()
    return {
        "schema_version": JSON_SCHEMA_VERSION,
        "model": stats.model,
        "prompt": request.prompt,
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "new_tokens": len(completion.token_ids),
        "prefill_s": completion.prefill_s,
        "decode_s": completion.decode_s,
        "prefill_tokens_per_s": completion.prefill_tokens_per_s,
        "decode_tokens_per_s": completion.decode_tokens_per_s,
        **({} if request.sampling.logprobs is None else {"logprobs": _likelihoods(opened, completion)}),
        "stats": {
            **asdict(stats.total),
            "capacity": stats.capacity,
            "resident_bytes": stats.resident_bytes,
            "total_expert_bytes": stats.total_expert_bytes,
            "fetched": asdict(stats.fetched),
            "parts": {path: asdict(part) for path, part in stats.parts.items()},
            "warmed": stats.warmed,
            "warmed_used": stats.warmed_used,
            "warmed_bytes": stats.warmed_bytes,
            "warmed_for": stats.warmed_for,
            "pinned": stats.pinned,
        },
    }


def _likelihoods(opened: OpenModel, completion: Completion) -> list[dict[str, Any]]:
    """How likely each token was."""
    from coterie.hf.token_bytes import TokenBytes

    tokens = TokenBytes(opened.processors.tokenizer)

    def said(token_id: int, logprob: float | None) -> dict[str, Any]:
        return {"token_id": token_id, "token": tokens.text(token_id), "logprob": logprob}

    return [
        {**said(one.token_id, one.logprob), "top_logprobs": [said(*other) for other in one.top]}
        for one in completion.logprobs
    ]

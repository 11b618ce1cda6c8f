"""`coterie generate`: continue a prompt, streaming the text to stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli import options as shared
from coterie.cli.answer import AnswerPrinter, summary
from coterie.cli.console import print_json, print_note
from coterie.cli.generation_options import (
    AdaptExpertsOption,
    AudiosOption,
    ChatTemplateOption,
    DomainOption,
    ExpertsPerTokenOption,
    GreedyOption,
    ImagesOption,
    MaxNewTokensOption,
    MinPOption,
    PerTokenOption,
    ProfileFileOption,
    QuietOption,
    RepeatPenaltyOption,
    SalienceFileOption,
    SeedOption,
    StatsFileOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TemplateOptionsOption,
    TopKOption,
    TopPOption,
    TraceFileOption,
    check_adaptation,
    check_domain,
    print_unused,
    template_variables,
)
from coterie.cli.interrupts import EXIT_INTERRUPTED, ctrl_c_requests_stop
from coterie.cli.opening import OpenOptions, import_engine, open_model
from coterie.errors import InputError, UsageError
from coterie.files.replacing import check_writable
from coterie.files.text import read_prompt, read_prompt_from_stdin
from coterie.spec import DEFAULT_POLICY, DEFAULT_PREFETCH

if TYPE_CHECKING:
    from transformers import BatchFeature

    from coterie.engine.chat import ChatOptions
    from coterie.engine.completion import Completion
    from coterie.engine.opened import OpenModel
    from coterie.engine.salience import SalienceTrace
    from coterie.engine.sampling import Sampling

JSON_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What is to be generated and what is to be written beside it."""

    prompt: str
    images: tuple[Path, ...]
    audios: tuple[Path, ...]
    sampling: Sampling
    chat: bool | None
    system: str | None
    template: ChatOptions
    speech: Path | None
    speaker: str | None
    stats: Path | None
    per_token: bool
    trace: Path | None
    profile: str | None
    domain: str
    salience: Path | None
    adapt_experts: str | None


def command(
    model: shared.ModelArgument,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", show_default=False, help="Text to continue; `-` or nothing reads stdin."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            exists=True,
            dir_okay=False,
            readable=True,
            metavar="FILE",
            show_default=False,
            help="Read the prompt from this UTF-8 file.",
        ),
    ] = None,
    image: ImagesOption = None,
    audio: AudiosOption = None,
    memory: shared.MemoryOption = None,
    expert_memory: shared.ExpertMemoryOption = None,
    component: shared.ComponentOption = None,
    missing: shared.MissingOption = None,
    source: shared.SourceOption = None,
    eviction: shared.ProfiledEvictionOption = DEFAULT_POLICY,
    prefetch: shared.PrefetchOption = DEFAULT_PREFETCH,
    profile: shared.ProfileOption = None,
    warm: shared.WarmOption = None,
    pin: shared.PinOption = None,
    experts_per_token: ExpertsPerTokenOption = None,
    adapt_experts: AdaptExpertsOption = None,
    max_context: shared.MaxContextOption = None,
    verify_reads: shared.VerifyReadsOption = False,
    revision: shared.RevisionOption = None,
    offline: shared.OfflineOption = False,
    threads: shared.ThreadsOption = None,
    max_new_tokens: MaxNewTokensOption = 128,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    repeat_penalty: RepeatPenaltyOption = None,
    seed: SeedOption = None,
    greedy: GreedyOption = None,
    stop: StopOption = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            show_default=False,
            help="Answer the prompt, put into the model's chat template; or continue it as it is (default).",
        ),
    ] = None,
    system: SystemOption = None,
    chat_template: ChatTemplateOption = None,
    template_option: TemplateOptionsOption = None,
    speak: Annotated[
        Path | None,
        typer.Option(
            "--speak",
            dir_okay=False,
            metavar="FILE",
            show_default=False,
            help="Answer in speech too: write a WAV file (24 kHz). Needs a whole omni model; the prompt is put into "
            "its chat template.",
        ),
    ] = None,
    speaker: Annotated[
        str | None,
        typer.Option("--speaker", metavar="NAME", show_default=False, help="With --speak: one of the model's voices."),
    ] = None,
    stats: StatsFileOption = None,
    per_token: PerTokenOption = False,
    salience: SalienceFileOption = None,
    record_trace: TraceFileOption = None,
    record_profile: ProfileFileOption = None,
    domain: DomainOption = None,
    as_json: shared.JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Continues a prompt. The text goes to stdout as it is generated, one line about speed and memory to stderr.

    Of a whole omni model only the thinker is opened, unless --speak asks for speech or --component names another part.
    Pictures and sounds come before the prompt, or where it mentions them in the model's own tokens.

    The prompt is continued as it is. With --chat, --system or --chat-template it is a question to a model that was
    trained to answer; what such a model thinks first goes to stderr.

    Ctrl-C ends generation and keeps what was printed; statistics, salience, trace and profile are still written. The
    exit code is 130.
    """  # fmt: skip
    _check_files(stats, per_token, record_trace, speak, speaker)
    check_adaptation(adapt_experts)
    if salience is not None:
        check_writable(salience)
    checked_domain = check_domain(domain, record_profile)
    variables = template_variables(template_option)
    answers = _wants_answer(chat, system, chat_template, variables, speak)
    text = _read_prompt(prompt, file, has_media=bool(image or audio))
    from coterie.engine.sampling import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repeat_penalty,
        stop=tuple(stop or ()),
        seed=seed,
        greedy=greedy,
    )
    options = OpenOptions(
        memory=memory,
        expert_memory=expert_memory,
        component=component,
        missing=missing,
        source=source,
        eviction=eviction,
        prefetch=prefetch,
        profile=profile,
        warm=warm,
        pin=pin,
        experts_per_token=experts_per_token,
        max_context=max_context,
        verify_reads=verify_reads,
        revision=revision,
        offline=offline,
        threads=threads,
        whole=speak is not None,
    )
    options.check()
    import_engine(quiet=quiet)
    from coterie.engine.chat import ChatOptions

    request = _Request(
        sampling=sampling,
        chat=answers,
        system=system,
        template=ChatOptions(template=chat_template, variables=variables),
        prompt=text,
        images=tuple(image or ()),
        audios=tuple(audio or ()),
        speech=speak,
        speaker=speaker,
        stats=stats,
        per_token=per_token,
        trace=record_trace,
        profile=record_profile,
        domain=checked_domain,
        salience=salience,
        adapt_experts=adapt_experts,
    )
    with open_model(model, options, quiet=quiet) as opened:
        _run(opened, request, as_json=as_json, quiet=quiet)


def _run(opened: OpenModel, request: _Request, *, as_json: bool, quiet: bool) -> None:
    printer = None if as_json else AnswerPrinter(quiet=quiet)
    if not quiet:
        print_unused(request.sampling, opened.model)
    with ctrl_c_requests_stop() as pressed, _recorded(opened, request):
        completion, extra = _generate(opened, request, printer, pressed, quiet=quiet)
    statistics = opened.runtime.stats()
    if printer is None:
        print_json(_as_json(opened, request, completion) | extra)
    else:
        printer.end(completion)
    if not quiet:
        print_note(summary(completion, statistics))
    if completion.finish_reason == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)


def _generate(
    opened: OpenModel,
    request: _Request,
    printer: AnswerPrinter | None,
    pressed: Callable[[], bool],
    *,
    quiet: bool,
) -> tuple[Completion, dict[str, Any]]:
    """Generates; returns the completion, and what speech adds to the JSON."""
    from coterie.engine.answers import reader_for
    from coterie.engine.chat import can_chat, chat_prompt
    from coterie.engine.completion import complete
    from coterie.engine.inputs import build_inputs

    tokenizer = opened.processors.tokenizer
    on_text = None if printer is None else printer.text
    trained = can_chat(opened.processors) or request.template.template is not None
    if not request.chat:
        if request.chat is None and trained and not quiet:
            print_note(
                f"{opened.runtime.source.name} has a chat template, which was not used: the prompt is continued as it "
                f"is. --chat answers it, --raw leaves this remark out."
            )
        inputs = build_inputs(opened.processors, request.prompt, images=request.images, audios=request.audios)
        return complete(opened.model, tokenizer, inputs, request.sampling, on_text=on_text, should_stop=pressed), {}
    if not trained:
        why = ", and its talker needs one to know whose turn it is" if request.speech else ""
        raise InputError(
            f"{opened.runtime.source.name} has no chat template{why}.",
            advice=f"Leave {'--speak' if request.speech else '--chat'} out, or pass a template (--chat-template).",
        )
    parts = [{"type": "image", "path": str(path)} for path in request.images]
    parts += [{"type": "audio", "path": str(path)} for path in request.audios]
    parts += [{"type": "text", "text": request.prompt}] if request.prompt else []
    system = [{"role": "system", "content": request.system}] if request.system else []
    prompt = chat_prompt(opened.processors, [*system, {"role": "user", "content": parts}], request.template)
    inputs = prompt.inputs(opened.processors)
    if request.speech is not None:
        return _speak(opened, request, inputs, on_text, pressed, request.speech)
    reader = reader_for(tokenizer, prompt.template, prompt.text)
    reader.on_reasoning = None if printer is None else printer.reasoning
    done = complete(
        opened.model, tokenizer, inputs, request.sampling, on_text=on_text, should_stop=pressed, reader=reader
    )
    return done, {"reasoning": done.reasoning, "tool_calls": [asdict(call) for call in done.tool_calls]}


def _speak(
    opened: OpenModel,
    request: _Request,
    inputs: BatchFeature,
    on_text: Callable[[str], None] | None,
    pressed: Callable[[], bool],
    path: Path,
) -> tuple[Completion, dict[str, Any]]:
    """Answers in speech, too, and writes it to a file."""
    from coterie.engine.speech import SPEECH_RATE, speak, write_wav

    speech = speak(
        opened.model,
        opened.processors.tokenizer,
        inputs,
        request.sampling,
        speaker=request.speaker,
        on_text=on_text,
        should_stop=pressed,
    )
    if speech.samples is None:
        return speech.completion, {"speech": None}
    write_wav(path, speech.samples)
    return speech.completion, {
        "speech": {
            "file": str(path),
            "seconds": len(speech.samples) / SPEECH_RATE,
            "rate": SPEECH_RATE,
            "made_in_s": speech.seconds,
        }
    }


def _wants_answer(
    chat: bool | None, system: str | None, template: str | None, variables: dict[str, Any], speech: Path | None
) -> bool | None:
    """Whether the prompt is to be answered: what only an answer has asks for one."""
    asked = [
        name
        for name, value in (
            ("--system", system),
            ("--chat-template", template),
            ("--template-option", variables or None),
            ("--speak", speech),
        )
        if value is not None
    ]
    if asked and chat is False:
        raise UsageError(f"{asked[0]} is for answers, and --raw continues the prompt.", advice="Leave one of them out.")
    return True if asked else chat


@contextmanager
def _recorded(opened: OpenModel, request: _Request) -> Iterator[None]:
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


def _as_json(opened: OpenModel, request: _Request, completion: Completion) -> dict[str, Any]:
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
        "stats": {
            **asdict(stats.total),
            "capacity": stats.capacity,
            "resident_bytes": stats.resident_bytes,
            "total_expert_bytes": stats.total_expert_bytes,
            "fetched": asdict(stats.fetched),
            "warmed": stats.warmed,
            "warmed_used": stats.warmed_used,
            "warmed_bytes": stats.warmed_bytes,
            "warmed_for": stats.warmed_for,
            "pinned": stats.pinned,
        },
    }


def _check_files(
    stats: Path | None, per_token: bool, trace: Path | None, speech: Path | None, speaker: str | None
) -> None:
    """What would fail at the end is told before a model is loaded."""
    if per_token and stats is None:
        raise UsageError("--per-token adds to --stats, which was not given.", advice="Add --stats FILE.")
    if speaker is not None and speech is None:
        raise UsageError("--speaker chooses the voice of --speak, which was not given.", advice="Add --speak FILE.")
    if trace is not None and trace.suffix not in (".npz", ".jsonl"):
        raise UsageError(f"A trace is written as .npz or .jsonl, not {trace.name!r}.", path=trace)
    for path in (stats, trace, speech):
        if path is not None:
            check_writable(path)


def _read_prompt(prompt: str | None, file: Path | None, *, has_media: bool) -> str:
    if file is not None:
        if prompt is not None:
            raise UsageError("Both a prompt and --file were given.", advice="Leave one of them out.")
        return read_prompt(file)
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and has_media:
        return ""
    if prompt is None and sys.stdin.isatty():
        raise UsageError("There is no prompt.", advice="Write it after the model, or pipe it in, or use --file.")
    return read_prompt_from_stdin()

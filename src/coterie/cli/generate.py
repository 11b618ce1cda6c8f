"""`coterie generate`: continue a prompt, streaming the text to stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli import options as shared
from coterie.cli.form_options import GrammarOption, JsonSchemaOption, RegexOption, form_of
from coterie.cli.generation import Request, run
from coterie.cli.generation_options import (
    AdaptExpertsOption,
    AudiosOption,
    ChatTemplateOption,
    DomainOption,
    FrequencyPenaltyOption,
    GreedyOption,
    IgnoreEosOption,
    ImagesOption,
    LogprobsOption,
    MaxNewTokensOption,
    MinNewTokensOption,
    MinPOption,
    PerTokenOption,
    PresencePenaltyOption,
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
    ThinkOption,
    TopKOption,
    TopPOption,
    TraceFileOption,
    chat_options,
    check_adaptation,
    check_domain,
)
from coterie.cli.opening import open_model, opens_model
from coterie.cli.speech import (
    STDOUT,
    MaxSpeechOption,
    SpeakOption,
    VoiceGreedyOption,
    VoiceOption,
    VoiceSeedOption,
    check_speech,
)
from coterie.cli.video_options import (
    VideoFpsOption,
    VideoFramesOption,
    VideoPixelsOption,
    VideosOption,
    VideoSoundOption,
    video_options,
)
from coterie.errors import UsageError
from coterie.files.replacing import check_writable
from coterie.files.text import read_prompt, read_prompt_from_stdin
from coterie.spec.opening import Opening, check_recording

if TYPE_CHECKING:
    from coterie.generation.chat_options import ChatOptions


@opens_model()
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
    video: VideosOption = None,
    video_fps: VideoFpsOption = None,
    video_frames: VideoFramesOption = None,
    video_pixels: VideoPixelsOption = None,
    video_sound: VideoSoundOption = None,
    *,
    opening: Opening,
    adapt_experts: AdaptExpertsOption = None,
    max_new_tokens: MaxNewTokensOption = 128,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    repeat_penalty: RepeatPenaltyOption = None,
    seed: SeedOption = None,
    greedy: GreedyOption = None,
    stop: StopOption = None,
    presence_penalty: PresencePenaltyOption = 0.0,
    frequency_penalty: FrequencyPenaltyOption = 0.0,
    min_new_tokens: MinNewTokensOption = None,
    ignore_eos: IgnoreEosOption = False,
    json_schema: JsonSchemaOption = None,
    grammar: GrammarOption = None,
    regex: RegexOption = None,
    logprobs: LogprobsOption = None,
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
    think: ThinkOption = None,
    speak: SpeakOption = None,
    voice: VoiceOption = None,
    voice_greedy: VoiceGreedyOption = False,
    voice_seed: VoiceSeedOption = None,
    max_speech: MaxSpeechOption = None,
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
    Pictures, sounds and videos come before the prompt, or where it mentions them in the model's own tokens.

    The prompt is continued as it is. With --chat, --system or --chat-template it is a question to a model that was
    trained to answer; what such a model thinks first goes to stderr.

    Ctrl-C ends generation and keeps what was printed and spoken; statistics, salience, trace and profile are still
    written. The exit code is 130.
    """  # fmt: skip
    _check_files(stats, per_token, record_trace)
    if record_trace is not None:
        check_recording(opening.drop_cold, "trace")
    if record_profile is not None:
        check_recording(opening.drop_cold, "profile")
    how = check_speech(speak, voice, greedy=voice_greedy, seed=voice_seed, longest_s=max_speech)
    if speak == STDOUT and as_json:
        raise UsageError("--speak - and --json both write to stdout.", advice="Write the speech to a file.")
    check_adaptation(adapt_experts)
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs are told in JSON alone.", advice="Add --json.")
    if salience is not None:
        check_writable(salience)
    checked_domain = check_domain(domain, record_profile)
    template = chat_options(chat_template, template_option, think)
    answers = _wants_answer(chat, system, template, speak)
    text = _read_prompt(prompt, file, has_media=bool(image or audio or video))
    shown = video_options(video_fps, video_frames, video_pixels, video_sound)
    from coterie.generation.sampling import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repeat_penalty,
        stop=tuple(stop or ()),
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        min_new_tokens=min_new_tokens,
        ignore_eos=ignore_eos,
        grammar=form_of(json_schema, grammar, regex),
        logprobs=logprobs,
        seed=seed,
        greedy=greedy,
    )
    request = Request(
        sampling=sampling,
        chat=answers,
        system=system,
        template=template,
        prompt=text,
        images=tuple(image or ()),
        audios=tuple(audio or ()),
        videos=tuple(video or ()),
        video_options=shown,
        speech=speak,
        voice=how,
        stats=stats,
        per_token=per_token,
        trace=record_trace,
        profile=record_profile,
        domain=checked_domain,
        salience=salience,
        adapt_experts=adapt_experts,
    )
    with open_model(model, opening, whole=speak is not None, quiet=quiet) as opened:
        run(opened, request, as_json=as_json, quiet=quiet)


def _wants_answer(chat: bool | None, system: str | None, template: ChatOptions, speech: str | None) -> bool | None:
    """Whether the prompt is to be answered: what only an answer has asks for one."""
    asked = [
        name
        for name, value in (
            ("--system", system),
            ("--chat-template", template.template),
            ("--template-option", template.variables or None),
            ("--no-think" if template.thinking is False else "--think", template.thinking),
            ("--speak", speech),
        )
        if value is not None
    ]
    if asked and chat is False:
        raise UsageError(f"{asked[0]} is for answers, and --raw continues the prompt.", advice="Leave one of them out.")
    return True if asked else chat


def _check_files(stats: Path | None, per_token: bool, trace: Path | None) -> None:
    """What would fail at the end is told before a model is loaded."""
    if per_token and stats is None:
        raise UsageError("--per-token adds to --stats, which was not given.", advice="Add --stats FILE.")
    if trace is not None and trace.suffix not in (".npz", ".jsonl"):
        raise UsageError(f"A trace is written as .npz or .jsonl, not {trace.name!r}.", path=trace)
    for path in (stats, trace):
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

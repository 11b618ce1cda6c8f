"""`coterie chat`: a conversation in the terminal, or one turn per line from a pipe."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated

import typer

from coterie.cli import options as shared
from coterie.cli.chat_session import ChatSession
from coterie.cli.generation_options import (
    ChatTemplateOption,
    DomainOption,
    GreedyOption,
    MinPOption,
    ProfileFileOption,
    QuietOption,
    RepeatPenaltyOption,
    SeedOption,
    StatsFileOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TemplateOptionsOption,
    ThinkOption,
    TopKOption,
    TopPOption,
    chat_options,
    check_domain,
    print_unused,
)
from coterie.cli.opening import open_model, opens_model
from coterie.cli.speech import (
    MaxSpeechOption,
    SpeakTurnsOption,
    VoiceGreedyOption,
    VoiceOption,
    VoiceSeedOption,
    check_target_of_turns,
    checked_voice,
)
from coterie.cli.turn_sounds import TurnSounds
from coterie.cli.video_options import (
    VideoFpsOption,
    VideoFramesOption,
    VideoPixelsOption,
    VideoSoundOption,
    video_options,
)
from coterie.files.replacing import check_writable
from coterie.spec.opening import Opening, check_recording

_ANSWER_TOKENS = 256
"""New tokens per answer of a model that was not trained to chat: it does not end by itself."""


@opens_model()
def command(
    model: shared.ModelArgument,
    system: SystemOption = None,
    chat_template: ChatTemplateOption = None,
    template_option: TemplateOptionsOption = None,
    think: ThinkOption = None,
    video_fps: VideoFpsOption = None,
    video_frames: VideoFramesOption = None,
    video_pixels: VideoPixelsOption = None,
    video_sound: VideoSoundOption = None,
    *,
    opening: Opening,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "-n",
            metavar="N",
            show_default=False,
            help="The most tokens of an answer; -1: until the model ends. Default: -1 with a chat template, else 256.",
        ),
    ] = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    repeat_penalty: RepeatPenaltyOption = None,
    seed: SeedOption = None,
    greedy: GreedyOption = None,
    stop: StopOption = None,
    speak: SpeakTurnsOption = None,
    voice: VoiceOption = None,
    voice_greedy: VoiceGreedyOption = False,
    voice_seed: VoiceSeedOption = None,
    max_speech: MaxSpeechOption = None,
    stats: StatsFileOption = None,
    record_profile: ProfileFileOption = None,
    domain: DomainOption = None,
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse/--no-reuse",
            help="Go on with what was computed for the last answer, or compute the whole conversation at every turn: "
            "slower, and to the last bit what the same messages give by themselves.",
        ),
    ] = True,
    quiet: QuietOption = False,
) -> None:
    """Talks with a model. Answers stream to stdout; everything else goes to stderr.

    Where the model has a chat template, it is used. Where it has none, the model was not trained to chat, and continues
    the conversation so far as a text. What a model thinks before it answers goes to stderr. When the context is full,
    the oldest turns are forgotten, with a remark. A turn computes its own tokens: what came before is kept.

    Lines that begin with a slash are commands; /help lists them. A message that begins with a slash is written with
    two. A message of several lines is put between two lines that hold nothing but three quotes.

    With --speak a whole omni model answers in speech, too. Ctrl-C stops it: what was spoken is kept, and so is the
    text. /speak turns it off and on.

    When stdin is not a terminal, each line is one turn, and nothing is asked. The exit code is then 1 if any of them
    failed.
    """
    if stats is not None:
        check_writable(stats)
    if speak is not None:
        check_target_of_turns(speak)
    how = checked_voice(speak, voice, greedy=voice_greedy, seed=voice_seed, longest_s=max_speech)
    checked_domain = check_domain(domain, record_profile)
    if record_profile is not None:
        check_recording(opening.drop_cold, "profile")
    template = chat_options(chat_template, template_option, think)
    shown = video_options(video_fps, video_frames, video_pixels, video_sound)
    from coterie.generation.sampling import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repeat_penalty,
        seed=seed,
        greedy=greedy,
        stop=tuple(stop or ()),
    )
    with open_model(model, opening, whole=speak is not None, quiet=quiet) as opened:
        # Here, where torch is imported and the user was told that this takes a moment.
        from coterie.generation.conversation import Conversation

        conversation = Conversation(
            opened.model,
            opened.processors,
            sampling=sampling,
            system=system,
            options=template,
            reuse=reuse,
            video_options=shown,
        )
        sounds = TurnSounds(opened, conversation, target=speak, voice=how)
        if max_new_tokens is None and not conversation.templated:
            conversation.sampling = replace(sampling, max_new_tokens=_ANSWER_TOKENS)
        if not quiet:
            print_unused(sampling, opened.model, how)
        session = ChatSession(opened=opened, conversation=conversation, quiet=quiet, sounds=sounds)
        with ExitStack() as stack:
            if stats is not None:
                stack.callback(opened.runtime.write_stats, stats)
            if record_profile is not None:
                stack.enter_context(opened.runtime.record_profile(record_profile, domain=checked_domain))
            session.run()
    if session.failed:
        raise typer.Exit(1)

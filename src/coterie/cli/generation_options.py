"""Options of the commands that open a model and generate, as annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli.console import print_note
from coterie.errors import UsageError
from coterie.spec import DEFAULT_DOMAIN, AdaptiveExperts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from coterie.generation.chat_options import ChatOptions
    from coterie.generation.sampling import Sampling
    from coterie.generation.speech import Voice

MaxNewTokensOption = Annotated[
    int,
    typer.Option("--max-new-tokens", "-n", metavar="N", help="The most tokens to generate; -1: until the model ends."),
]

TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        show_default=False,
        help="Sample with this temperature, such as 0.7; 0 always takes the most probable token.",
    ),
]

TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", show_default=False, help="Sample from this probability mass, such as 0.9."),
]

TopKOption = Annotated[
    int | None,
    typer.Option("--top-k", metavar="K", show_default=False, help="Sample from the K most probable tokens; 0: all."),
]

MinPOption = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        metavar="P",
        show_default=False,
        help="Do not sample tokens below this share of the most probable one's probability, such as 0.05.",
    ),
]

RepeatPenaltyOption = Annotated[
    float | None,
    typer.Option(
        "--repeat-penalty",
        metavar="X",
        show_default=False,
        help="Make tokens that were there before less probable, such as 1.1; 1: do not.",
    ),
]

PresencePenaltyOption = Annotated[
    float,
    typer.Option(
        "--presence-penalty",
        metavar="X",
        show_default=False,
        help="Make tokens that were generated before less probable, from -2 to 2.",
    ),
]

FrequencyPenaltyOption = Annotated[
    float,
    typer.Option(
        "--frequency-penalty",
        metavar="X",
        show_default=False,
        help="The same as many times as they were generated, from -2 to 2.",
    ),
]

MinNewTokensOption = Annotated[
    int | None,
    typer.Option(
        "--min-new-tokens", metavar="N", show_default=False, help="Let the model end after so many tokens at the least."
    ),
]

IgnoreEosOption = Annotated[bool, typer.Option("--ignore-eos", help="Go on where the model would end.")]

LogprobsOption = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        metavar="N",
        show_default=False,
        help="With --json: how likely each token was, and the N most probable ones at its place (up to 20).",
    ),
]

StopOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        show_default=False,
        help="End the answer before this text; may be given several times.",
    ),
]

SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", show_default=False, help="Make sampling repeatable.")
]

GreedyOption = Annotated[
    bool | None,
    typer.Option(
        "--greedy/--sample",
        show_default=False,
        help="Always take the most probable token, or sample. Default: as the model's generation config says.",
    ),
]

SystemOption = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", show_default=False, help="A system message to begin with."),
]

ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="FILE",
        show_default=False,
        help="Use the chat template in this file, or the one of this name where the model has several.",
    ),
]

ThinkOption = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think",
        show_default=False,
        help="Have the model think before it answers, or not, if its chat template has a switch for that.",
    ),
]

TemplateOptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-option",
        metavar="NAME=VALUE",
        show_default=False,
        help="Tell the chat template something, such as enable_thinking=false; may be given several times.",
    ),
]

AdaptExpertsOption = Annotated[
    str | None,
    typer.Option(
        "--adapt-experts",
        metavar="HOW",
        show_default=False,
        help="Leave out some of a token's experts: wake, focus or crisis (down to 25, 50 or 75 % of them, by the "
        "salience of the token before), or gate:SHARE (those below this share of the highest gate weight). Changes "
        "the output.",
    ),
]

ImagesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--image", exists=True, dir_okay=False, readable=True, metavar="FILE", show_default=False,
        help="A picture; may be given several times.",
    ),
]  # fmt: skip

AudiosOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--audio", exists=True, dir_okay=False, readable=True, metavar="FILE", show_default=False,
        help="A sound file (WAV, FLAC, Ogg, MP3, …); may be given several times.",
    ),
]  # fmt: skip


def _named_file(path: Path | None) -> Path | None:
    """The callback of files that are written: a dash is no name here."""
    if path is not None and str(path) == "-":
        raise UsageError("Statistics go to a file, and - is none.", advice="--json prints them on stdout.")
    return path


StatsFileOption = Annotated[
    Path | None,
    typer.Option(
        "--stats",
        dir_okay=False,
        metavar="FILE",
        show_default=False,
        callback=_named_file,
        help="Write statistics to this JSON file.",
    ),
]

PerTokenOption = Annotated[
    bool, typer.Option("--per-token", help="With --stats: also each token's experts and gate weights, by layer.")
]

SalienceFileOption = Annotated[
    Path | None,
    typer.Option(
        "--salience",
        dir_okay=False,
        metavar="FILE",
        show_default=False,
        help="Write each token's salience to this JSON file: surprise, novelty, arousal, reward, conflict.",
    ),
]

TraceFileOption = Annotated[
    Path | None,
    typer.Option(
        "--record-trace",
        dir_okay=False,
        metavar="FILE",
        show_default=False,
        help="Write the routing of every token to this .npz or .jsonl file, for replay.",
    ),
]

ProfileFileOption = Annotated[
    str | None,
    typer.Option(
        "--record-profile",
        metavar="DB",
        show_default=False,
        help="Record what every expert does into this profile: a file, which is made if it is not there, or "
        "postgresql://USER@HOST/DATABASE.",
    ),
]

DomainOption = Annotated[
    str | None,
    typer.Option(
        "--domain",
        metavar="NAME",
        show_default=False,
        help=f"With --record-profile: what the tokens count as, such as code. Default: {DEFAULT_DOMAIN}.",
    ),
]


def chat_options(template: str | None, given: list[str] | None, thinking: bool | None) -> ChatOptions:
    """What ``--chat-template``, ``--template-option`` and ``--think`` say.

    Raises:
        UsageError: If an option is not of the form NAME=VALUE, or of a JSON object of them, or no template can be told
            it.
    """
    from coterie.generation.chat_options import ChatOptions

    return ChatOptions(template=template, variables=_template_variables(given), thinking=thinking)


def _template_variables(given: list[str] | None) -> dict[str, Any]:
    """Values are JSON where they can be, else texts."""
    variables: dict[str, Any] = {}
    for one in given or []:
        name, equals, text = one.partition("=")
        if one.lstrip().startswith("{"):
            value = _as_json(one)
            if not isinstance(value, dict):
                raise UsageError(f"--template-option {one!r} is not a JSON object.")
            variables |= value
        elif equals and name.isidentifier():
            variables[name] = _as_json(text)
        else:
            raise UsageError(
                f"--template-option {one!r} is not of the form NAME=VALUE.",
                advice="Write it like enable_thinking=false.",
            )
    return variables


def _as_json(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def print_unused(sampling: Sampling, model: PreTrainedModel, voice: Voice | None = None) -> None:
    """Remarks on what was said and has no effect.

    Args:
        sampling: How tokens are chosen.
        model: The model.
        voice: How answers are spoken, if they are: one that draws does so with the seed, unless it has its own.
    """
    drawn = voice is not None and not voice.greedy and voice.seed is None
    for name in sampling.unused(model.generation_config):
        if name == "seed" and drawn:
            continue
        print_note(
            f"--{name.replace('_', '-')} has no effect: the most probable token is always taken. "
            f"--sample, or a --temperature above 0, draws one."
        )
    if voice is not None and voice.greedy and voice.seed is not None:
        print_note("--voice-seed has no effect: --voice-greedy always takes the likeliest sound.")


def check_adaptation(how: str | None) -> str | None:
    """The way to adapt experts, told before a model is loaded what would fail then.

    Raises:
        UsageError: If there is no such way.
    """
    if how is not None:
        AdaptiveExperts.of(how, 1)
    return how


def check_domain(domain: str | None, profile: str | None) -> str:
    """The domain to record, told before a model is loaded what would fail then.

    Raises:
        UsageError: If nothing is recorded, or the name cannot be.
    """
    if domain is None:
        return DEFAULT_DOMAIN
    if profile is None:
        raise UsageError(
            "--domain says what --record-profile counts tokens as, which was not given.",
            advice="Add --record-profile DB.",
        )
    from coterie.profiles.facts import check_group

    return check_group("text", domain, "prompt").domain


QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No remarks on stderr, only errors.")]

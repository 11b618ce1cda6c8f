"""Options of the commands that open a model and generate, as annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.errors import UsageError
from coterie.spec import DEFAULT_DOMAIN, AdaptiveExperts

MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", "-n", min=1, metavar="N", help="The most tokens to generate.")
]

TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", metavar="T", show_default=False, help="Sample with this temperature, such as 0.7."),
]

TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", show_default=False, help="Sample from this probability mass, such as 0.9."),
]

TopKOption = Annotated[
    int | None,
    typer.Option("--top-k", metavar="K", show_default=False, help="Sample from the K most probable tokens; 0: all."),
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

ExpertsPerTokenOption = Annotated[
    int | None,
    typer.Option(
        "--experts-per-token",
        min=1,
        metavar="K",
        show_default=False,
        help="Use another number of experts per token than the model was trained for. Changes the output.",
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
        help="A WAV file; may be given several times.",
    ),
]  # fmt: skip

StatsFileOption = Annotated[
    Path | None,
    typer.Option(
        "--stats", dir_okay=False, metavar="FILE", show_default=False, help="Write statistics to this JSON file."
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

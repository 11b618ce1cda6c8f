"""Options of commands that prune experts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

_MEASURES = (
    "Which stay: reap, those with the largest mean of gate weight × output size over their tokens; ean, with the "
    "largest sum of it; frequency, those chosen most often"
)


def keep_option(first: str = "") -> Any:
    """``--keep``; ``first`` is what its help says before all else."""
    return typer.Option(
        "--keep",
        metavar="N",
        show_default=False,
        help=f"{first}Experts of each layer to keep (with --ranking global: on average): a number, a share such as "
        "75%, or by component, such as thinker=75%,talker=96; components that are not named keep all.",
    )


PruneByOption = Annotated[
    Literal["reap", "ean", "frequency", "random"],
    typer.Option("--by", help=f"{_MEASURES}; random, any."),
]

FitByOption = Annotated[
    Literal["reap", "ean", "frequency"] | None,
    typer.Option("--by", show_default=False, help=f"With --keep: {_MEASURES}. Default: reap."),
]

_RANKING = (
    "layer: every layer keeps the same number. global: the experts of all layers are ranked together, and layers keep "
    "different numbers, as many in all"
)

PruneRankingOption = Annotated[
    Literal["layer", "global"], typer.Option("--ranking", help=f"{_RANKING}; such a store cannot be exported.")
]

FitRankingOption = Annotated[
    Literal["layer", "global"] | None,
    typer.Option("--ranking", show_default=False, help=f"With --keep. {_RANKING}. Default: layer."),
]

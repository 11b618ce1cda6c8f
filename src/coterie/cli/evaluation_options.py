"""Options of commands that have a model predict texts, as annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        file_okay=False,
        metavar="DIR",
        show_default=False,
        help="Keep what the full model computes in this directory, and compare with what is there. Then it is computed "
        "once, and alone: neither model shares --memory.",
    ),
]

ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        min=1,
        metavar="TOKENS",
        show_default=False,
        help="Input tokens of a window. Default: 512, or what the model was made for if that is less.",
    ),
]

StrideOption = Annotated[
    int | None,
    typer.Option(
        "--stride",
        min=1,
        metavar="TOKENS",
        show_default=False,
        help="Tokens predicted in a window. Default: as many as inputs; fewer give more context and cost more.",
    ),
]

LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="TOKENS", show_default=False, help="Predict at most so many per text."),
]

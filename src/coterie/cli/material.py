"""Files to run a model over, as commands take them: each with its domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coterie.errors import UsageError

if TYPE_CHECKING:
    from coterie.survey import Material

SpeechFilesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--speech",
        metavar="[DOMAIN=]PATH",
        show_default=False,
        help="Sound files, likewise; their domain is speech unless you name one.",
    ),
]

ImageFilesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--images",
        metavar="[DOMAIN=]PATH",
        show_default=False,
        help="Pictures, likewise; their domain is images unless you name one.",
    ),
]


def gather_material(
    text: list[str] | None, speech: list[str] | None, images: list[str] | None, *, option: str
) -> list[Material]:
    """The files that options name.

    Args:
        text: DOMAIN=PATH of texts.
        speech: [DOMAIN=]PATH of sounds.
        images: [DOMAIN=]PATH of pictures.
        option: The name of the option for texts.

    Raises:
        UsageError: If there are none, or a text has no domain.
        InputError: If a file cannot be used.
    """
    from coterie.survey import gather

    found: list[Material] = []
    for place in text or []:
        domain, path = split_name(place)
        if domain is None:
            raise UsageError(
                f"{option} {place} names no domain.", advice=f"Write {option} DOMAIN={place}, such as code={place}."
            )
        found += gather("text", domain, path)
    for place in speech or []:
        domain, path = split_name(place)
        found += gather("speech", domain or "speech", path)
    for place in images or []:
        domain, path = split_name(place)
        found += gather("images", domain or "images", path)
    if not found:
        raise UsageError(
            "There is nothing to run the model over.",
            advice=f"Give {option} DOMAIN=PATH, --speech PATH or --images PATH.",
        )
    return found


def split_name(place: str) -> tuple[str | None, str]:
    """NAME=PATH; without a name, or where the equals sign belongs to the path, None and the whole."""
    name, equals, path = place.partition("=")
    return (name, path) if equals and "/" not in name else (None, place)

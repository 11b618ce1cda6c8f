"""Files to run a model over, as commands take them: each with its domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coterie.errors import UsageError

if TYPE_CHECKING:
    from coterie.survey import Material


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
        domain, path = _split(place)
        if domain is None:
            raise UsageError(
                f"{option} {place} names no domain.", advice=f"Write {option} DOMAIN={place}, such as code={place}."
            )
        found += gather("text", domain, path)
    for place in speech or []:
        domain, path = _split(place)
        found += gather("speech", domain or "speech", path)
    for place in images or []:
        domain, path = _split(place)
        found += gather("images", domain or "images", path)
    if not found:
        raise UsageError(
            "There is nothing to run the model over.",
            advice=f"Give {option} DOMAIN=PATH, --speech PATH or --images PATH.",
        )
    return found


def _split(place: str) -> tuple[str | None, str]:
    """DOMAIN=PATH; without a domain, or where the equals sign belongs to the path, None and the whole."""
    domain, equals, path = place.partition("=")
    return (domain, path) if equals and "/" not in domain else (None, place)

"""Several values in one option."""

from __future__ import annotations


def listed(text: str | None) -> list[str]:
    """Values with commas between them; none if the option was not given."""
    return [] if text is None else [one.strip() for one in text.split(",") if one.strip()]

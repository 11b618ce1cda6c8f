"""Schemes as users name them: which names there are, and a size of groups beside a name."""

from __future__ import annotations

from coterie.errors import UsageError
from coterie.spec.encodings import (
    GROUP,
    GROUPS,
    NATIVE,
    SCHEME_FORMATS,
    SCHEME_NAMES,
    SCHEMES_MADE_HERE,
    USUAL_SCHEMES,
    scheme_name,
)


def check_scheme(name: str) -> None:
    """Refuses what names no scheme.

    Raises:
        UsageError: If it is none; names the nearest one.
    """
    if name not in SCHEME_FORMATS and name != NATIVE:
        others = (one for one in SCHEMES_MADE_HERE if one not in USUAL_SCHEMES)
        raise UsageError.unknown("scheme", name, (*SCHEME_NAMES, *others))


def check_made_here(name: str) -> None:
    """Refuses a scheme that nothing is quantised to.

    Raises:
        UsageError: If quantised checkpoints alone have it.
    """
    form = SCHEME_FORMATS.get(name)
    if form is not None and not form.made_here:
        raise UsageError(
            f"Nothing is quantised to {name!r}: it keeps what quantised checkpoints have.",
            advice=f"Write {scheme_name(form.code_bits, form.group if form.group in GROUPS else GROUP)}.",
            got=name,
        )


def with_group(scheme: str | None, group: int | None) -> str | None:
    """A scheme with groups of another size, such as ``int4-g128`` for ``int4`` and 128.

    Args:
        scheme: One of :data:`coterie.spec.encodings.USUAL_SCHEMES`; anything, if no size is given.
        group: Weights that share a scale; None for what the scheme says.

    Raises:
        UsageError: If the scheme is none of these, or groups cannot have that size.
    """
    if group is None:
        return scheme
    if scheme not in USUAL_SCHEMES:
        what = "No scheme is named, and groups have" if scheme is None else f"{scheme!r} is given"
        raise UsageError(
            f"{what} a size, {group}.",
            advice=f"It belongs to one of {', '.join(USUAL_SCHEMES)}: --scheme int4 --group 128. Where several schemes "
            "are named, write it with each, such as int4-g128.",
            got=scheme,
        )
    if group not in GROUPS:
        raise UsageError.unknown("size of a group", str(group), map(str, GROUPS))
    return scheme_name(SCHEME_FORMATS[scheme].code_bits, group)

"""Sounds and pictures as an evaluation takes them."""

from __future__ import annotations

from collections.abc import Iterable

from coterie.evaluate import MediaFile
from coterie.survey.material import Material


def media_files(material: Iterable[Material]) -> tuple[MediaFile, ...]:
    """The sounds and pictures among files, by kind and domain; texts are left out."""
    return tuple(
        MediaFile(name=media_name(one), kind=one.kind, path=one.path) for one in material if one.kind != "text"
    )


def media_name(one: Material) -> str:
    """What results call the sounds or pictures of a domain."""
    return one.kind if one.domain == one.kind else f"{one.kind} of {one.domain}"

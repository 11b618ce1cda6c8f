"""Divides texts into those that decide (profile, calibration) and those that are scored: no document is both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import UsageError
from coterie.files.replacing import replacing
from coterie.files.text import text_parts
from coterie.survey import Material, gather

_EVERY = 4
"""One document in so many is scored."""

_BYTES_PER_TOKEN = 8
"""Of text that decides: at least so many bytes are taken for each token that is wanted."""

_BETWEEN = "\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Texts, sounds and pictures by what they are for.

    Attributes:
        decides: What the profile is recorded and codes are calibrated on: one text of each domain, sounds, pictures.
        scored: Domain → a text of other documents.
        media: Sounds and pictures that are scored: others than those that decide.
        lacking: Domains of which there is no text to score.
        held_out: Whether what is scored was held out of the same files; if not, it came separately.
    """

    decides: tuple[Material, ...]
    scored: dict[str, Path]
    media: tuple[Material, ...]
    lacking: tuple[str, ...]
    held_out: bool


def divide(material: Sequence[Material], texts: Sequence[Material], folder: Path, *, tokens: int) -> Division:
    """Writes one text of each domain to decide by, and one to score.

    Documents are what blank lines separate. Unless there are other texts to score, a document's SHA-256 says what it is
    for, so the same text has the same division everywhere: every fourth is scored, and at least one of a domain that
    has several. A document that occurs in several files is on one side only. Sounds and pictures are divided likewise,
    file by file.

    Args:
        material: Texts, sounds and pictures to decide by.
        texts: Texts to score. If there are any, no text is held out of ``material``.
        folder: Where the texts go; made anew.
        tokens: That are wanted of all domains together. A domain of which there is far more text is cut, evenly from
            all its files.

    Raises:
        UsageError: If a domain has one document and nothing else to score, and no other domain has.
        InputError: If a file cannot be used.
        OutputError: If a text cannot be written.
    """
    media, answered = _split_media([one for one in material if one.kind != "text"])
    domains = dict.fromkeys(one.domain for one in material if one.kind == "text")
    most = _BYTES_PER_TOKEN * max(1, tokens // max(1, len({one.domain for one in material})))
    decides: list[Material] = []
    scored: dict[str, Path] = {}
    lacking: list[str] = []
    for domain in domains:
        own = [one for one in material if one.kind == "text" and one.domain == domain]
        kept, held = _split(own, most) if not texts else (_first(own, most), [])
        decides += gather("text", domain, _write(folder / "decides", domain, kept))
        if held:
            scored[domain] = _write(folder / "scored", domain, held)
        elif not texts:
            lacking.append(domain)
    for domain in dict.fromkeys(one.domain for one in texts):
        own = [one for one in texts if one.domain == domain]
        scored[domain] = _write(folder / "scored", domain, [part for one in own for part in _documents(one.path)])
    if not scored:
        raise UsageError(
            "No text can be held out to measure the result with: each domain is one document.",
            advice="Give other texts to score: --text DOMAIN=PATH. Documents are what blank lines separate.",
        )
    return Division(
        decides=(*decides, *media),
        scored=scored,
        media=tuple(answered),
        lacking=tuple(lacking),
        held_out=not texts,
    )


def digest(path: Path) -> str:
    """Hex digits that differ if the content of a file does."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split_media(files: Sequence[Material]) -> tuple[list[Material], list[Material]]:
    """The sounds and pictures that decide, and those that are scored, in an order that their content gives."""
    kept: list[Material] = []
    held: list[Material] = []
    for kind in dict.fromkeys((one.kind, one.domain) for one in files):
        own = sorted((digest(one.path), str(one.path), one) for one in files if (one.kind, one.domain) == kind)
        scored = {name for name, _, _ in own if int(name[:8], 16) % _EVERY == 0}
        names = list(dict.fromkeys(name for name, _, _ in own))
        if len(names) == 1:
            scored = set()
        elif len(scored) in (0, len(names)):
            scored ^= {names[0]}
        kept += [one for name, _, one in own if name not in scored]
        held += [one for name, _, one in own if name in scored]
    return kept, held


def _split(files: Sequence[Material], most: int) -> tuple[list[str], list[str]]:
    """The documents that decide, and those that are scored, about so many bytes of the former."""
    kept: dict[str, str] = {}
    held: dict[str, str] = {}
    for share, file in _shares(files, most):
        taken = 0
        for document in _documents(file.path):
            name = hashlib.sha256(document.encode()).hexdigest()
            (held if int(name[:8], 16) % _EVERY == 0 else kept).setdefault(name, document)
            taken += len(document.encode())
            if taken > share * _EVERY // (_EVERY - 1):
                break
    for none, others in ((held, kept), (kept, held)):
        if not none and len(others) > 1:
            least = min(others)
            none[least] = others.pop(least)
    if not kept:
        kept, held = held, {}
    return list(kept.values()), list(held.values())


def _first(files: Sequence[Material], most: int) -> list[str]:
    found: list[str] = []
    for share, file in _shares(files, most):
        taken = 0
        for document in _documents(file.path):
            found.append(document)
            taken += len(document.encode())
            if taken > share:
                break
    return found


def _shares(files: Sequence[Material], most: int) -> Iterator[tuple[int, Material]]:
    """Each file with the bytes that may be taken of it; what small ones leave, the next may have. Smallest first."""
    left = most
    for number, file in enumerate(ordered := sorted(files, key=lambda one: (one.nbytes, str(one.path)))):
        share = left // (len(ordered) - number)
        yield share, file
        left -= min(share, file.nbytes)


def _documents(path: Path) -> Iterator[str]:
    """What blank lines separate, in order, as far as it is not blank itself."""
    for part in text_parts(path):
        yield from (one for one in part.replace("\r\n", "\n").split(_BETWEEN) if one.strip())


def _write(folder: Path, domain: str, documents: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in domain)
    path = folder / f"{name}-{hashlib.sha256(domain.encode()).hexdigest()[:8]}.txt"
    with replacing(path) as partial:
        partial.write_text(_BETWEEN.join(documents) + "\n", encoding="utf-8")
    return path

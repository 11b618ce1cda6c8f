"""What a model is run over: files, each of a kind and a domain."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from coterie.errors import InputError, UsageError
from coterie.files.text import text_parts
from coterie.profiles.facts import check_group

MaterialKind = Literal["text", "speech", "images"]

MODALITY_OF: Mapping[MaterialKind, str] = {"text": "text", "speech": "audio", "images": "image"}
"""Kind of material → the modality of its tokens."""

_ENDINGS: Mapping[MaterialKind, tuple[str, ...]] = {
    "text": (),
    "speech": (".wav", ".flac", ".ogg", ".mp3"),
    "images": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
}
"""Of the files that are taken out of a directory; none: all but hidden ones."""

_TOKENS_OF_A_PICTURE = 256
_BYTES_PER_TOKEN: Mapping[MaterialKind, int] = {"text": 4, "speech": 2560}
"""Of texts, and of sounds of 16 kHz and 16 bits, of which a second is about a dozen tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A file to run a model over.

    Attributes:
        kind: ``text``, ``speech`` (a sound file) or ``images`` (a picture).
        domain: What its tokens count as.
        path: The file.
        nbytes: Its size.
    """

    kind: MaterialKind
    domain: str
    path: Path
    nbytes: int

    @property
    def name(self) -> str:
        """What its progress is kept by: the same file of another domain is another input."""
        return f"{self.kind}:{self.domain}:{self.path.resolve()}"

    @property
    def work(self) -> int:
        """About how many tokens it will be, as far as its size tells: bytes of a picture are no measure of that."""
        return _TOKENS_OF_A_PICTURE if self.kind == "images" else max(1, self.nbytes // _BYTES_PER_TOKEN[self.kind])


def gather(kind: MaterialKind, domain: str, place: str | Path) -> list[Material]:
    """The files of a place, sorted by path; looks into each enough to know that it can be read.

    Args:
        kind: What they are.
        domain: What they count as.
        place: A file, a directory (with all below it: texts are all files that are not hidden, sounds and pictures
            those with an ending of their kind), or a pattern with ``*``, ``?`` or ``[…]`` (``**`` for all folders).

    Raises:
        UsageError: For an unknown kind or a domain's name that cannot be.
        InputError: If there is no such file, or one cannot be read, is empty, or is a text and not UTF-8.
    """
    if kind not in get_args(MaterialKind):
        raise UsageError.unknown("kind of material", kind, get_args(MaterialKind))
    check_group("text", domain, "prompt")
    found = sorted(set(_files(kind, Path(place).expanduser())))
    if not found:
        endings = f" with one of the endings {', '.join(_ENDINGS[kind])}" if _ENDINGS[kind] else ""
        raise InputError(
            f"There is no file{endings} at {place}.",
            advice="Give a file, a directory or a pattern in quotes, such as 'notes/**/*.md'.",
            path=place,
        )
    return [Material(kind=kind, domain=domain, path=path, nbytes=_checked(kind, path)) for path in found]


def without_repetitions(material: Iterable[Material]) -> list[Material]:
    """Each file of each domain once, in order."""
    return list({one.name: one for one in material}.values())


class WorkDone:
    """Tells of bytes that are done as work that is done: seconds of sound and of text differ in bytes a hundredfold.

    Args:
        files: Whose bytes they are, one file after the other.
    """

    def __init__(self, files: Sequence[Material]) -> None:
        self._files = files
        self._finished = 0
        self._work_of_finished = 0
        self._nbytes = 0
        self._told = 0

    def add(self, nbytes: int) -> int:
        """The work that is done with so many bytes more."""
        self._nbytes += nbytes
        while (one := self._current()) is not None and self._nbytes >= one.nbytes:
            self._nbytes -= one.nbytes
            self._work_of_finished += one.work
            self._finished += 1
        begun = 0 if one is None else one.work * self._nbytes // one.nbytes
        before, self._told = self._told, self._work_of_finished + begun
        return self._told - before

    def _current(self) -> Material | None:
        return self._files[self._finished] if self._finished < len(self._files) else None


def _files(kind: MaterialKind, place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    elif place.is_dir():
        endings = _ENDINGS[kind]
        for folder, folders, files in os.walk(place):
            folders[:] = [name for name in folders if not name.startswith(".")]
            names = (name for name in files if not name.startswith("."))
            yield from (Path(folder, name) for name in names if not endings or name.lower().endswith(endings))
    else:
        # Path.glob takes no absolute pattern.
        found = glob.glob(str(place), recursive=True)  # noqa: PTH207
        yield from (path for path in map(Path, found) if path.is_file())


def _checked(kind: MaterialKind, path: Path) -> int:
    if kind == "text":
        if not next(text_parts(path), "").strip():
            raise InputError(f"{path} is empty.", advice="Leave it out.", path=path)
    else:
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror}.", advice="Check the path.", path=path
            ) from error
    return path.stat().st_size

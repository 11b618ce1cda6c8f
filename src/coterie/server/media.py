"""Pictures and sounds that came within a request: bytes of known kinds, and a file of each while it is decoded."""

from __future__ import annotations

import base64
import binascii
import errno
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from coterie.errors import CoterieError
from coterie.server.refusals import Refusal, refusal_of

MOST_MEDIA = 16
"""Pictures and sounds of one request."""
MEDIUM_NBYTES = 20 << 20
"""Bytes of one of them, before it is decoded."""

_PICTURES = {"image/png": ("png",), "image/jpeg": ("jpeg",), "image/jpg": ("jpeg",), "image/webp": ("webp",)}


@dataclass(slots=True)
class Media:
    """The pictures and sounds of one request, in order.

    Attributes:
        pictures: Field of the request → bytes.
        sounds: Likewise.
    """

    pictures: dict[str, bytes] = field(default_factory=dict)
    sounds: dict[str, bytes] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.pictures or self.sounds)

    def add_picture(self, param: str, text: str, media_type: str) -> str:
        """Takes a picture in base64; returns what it is called in the prompt.

        Raises:
            Refusal: If it is none of a kind that is taken.
        """
        if media_type not in _PICTURES:
            raise Refusal(400, f"{param}: pictures are PNG, JPEG or WebP.", param=param)
        data = self._decoded(param, text)
        if _picture_kind(data) not in _PICTURES[media_type]:
            raise Refusal(400, f"{param} is not what its type says, {media_type}.", param=param)
        self.pictures[param] = data
        return param

    def add_picture_url(self, param: str, url: str) -> str:
        """Takes a picture as a data URI. What a URL of another kind leads to is not fetched, and no file is opened."""
        head, comma, text = url.partition(",")
        if not head.lower().startswith("data:") or not comma:
            raise Refusal(
                400, f"{param}: pictures come in the request, as data:image/png;base64,…; nothing is fetched.",
                param=param, code="unsupported",
            )  # fmt: skip
        media_type, *parameters = head[len("data:") :].lower().split(";")
        if parameters != ["base64"]:
            raise Refusal(400, f"{param}: a data URI is in base64 here.", param=param)
        return self.add_picture(param, text, media_type)

    def add_sound(self, param: str, text: str, kind: str) -> str:
        """Takes a sound in base64; returns what it is called in the prompt."""
        data = self._decoded(param, text)
        if _sound_kind(data) != kind:
            raise Refusal(400, f"{param} is not a sound of the format {kind}.", param=param)
        self.sounds[param] = data
        return param

    def add_sound_file(self, param: str, data: bytes) -> str:
        """Takes a sound as a file has it; returns what it is called in the prompt."""
        if len(data) > MEDIUM_NBYTES:
            raise Refusal(413, f"{param}: a sound has {MEDIUM_NBYTES:,} bytes at most.", param=param)
        if _sound_kind(data) is None:
            raise Refusal(400, f"{param} is no sound: WAV, MP3 and FLAC are.", param=param)
        self.sounds[param] = data
        return param

    @contextmanager
    def files(self) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Files of pictures and of sounds, inside only. What is wrong with one is said of its field.

        Raises:
            Refusal: If the code inside raises over one.
        """
        with ExitStack() as stack:
            try:
                paths = self._written(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coterie-"))))
            except OSError as error:
                raise _no_file(error) from error
            try:
                yield (
                    tuple(str(paths[param]) for param in self.pictures),
                    tuple(str(paths[param]) for param in self.sounds),
                )
            except CoterieError as error:
                refusal, message = refusal_of(error), error.message
                for param, path in paths.items():
                    if str(path) in message:
                        refusal.param = param
                        refusal.message = message.replace(str(path), param)
                raise refusal from None

    def _written(self, directory: Path) -> dict[str, Path]:
        """Writes all of them; returns the file of each."""
        paths: dict[str, Path] = {}
        for number, (param, data) in enumerate([*self.pictures.items(), *self.sounds.items()]):
            # None of these names begins with another: messages are searched for them.
            paths[param] = directory / f"{number:03}"
            paths[param].write_bytes(data)
        return paths

    def _decoded(self, param: str, text: str) -> bytes:
        if len(self.pictures) + len(self.sounds) >= MOST_MEDIA:
            raise Refusal(400, f"{param}: a request has {MOST_MEDIA} pictures and sounds at most.", param=param)
        if len(text) > MEDIUM_NBYTES * 4 // 3 + 4:
            raise Refusal(400, f"{param}: a picture or sound has {MEDIUM_NBYTES:,} bytes at most.", param=param)
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise Refusal(400, f"{param} is not base64.", param=param) from None


def _no_file(error: OSError) -> Refusal:
    """What a client is told whose pictures and sounds cannot be put into files."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message, code = "The server's disk has no room for pictures and sounds.", "insufficient_storage"
    else:
        message, code = "The server cannot put pictures and sounds into files.", "unavailable"
    return Refusal(
        503, f"{message} Whoever runs it can name another folder for them: TMPDIR.", code=code, retry_after=5
    )


def _picture_kind(data: bytes) -> str | None:
    """By its first bytes: decoders of other formats are not tried."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _sound_kind(data: bytes) -> str | None:
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return "wav"
    if data.startswith(b"fLaC"):
        return "flac"
    is_frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    return "mp3" if data.startswith(b"ID3") or is_frame else None

"""Pictures, sounds and videos that came within a request: bytes of known kinds, and files while they are decoded."""

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
from coterie.generation.containers import container_format
from coterie.generation.media_files import MediaFiles
from coterie.generation.video_options import VideoOptions
from coterie.server.refusals import Refusal, refusal_of
from coterie.server.schemas.videos import VideoFields

MOST_MEDIA = 16
"""Pictures, sounds and videos of one request."""
MEDIUM_NBYTES = 20 << 20
"""Bytes of one of them, before it is decoded."""

_VIDEOS = {
    "video/mp4": "mov", "video/quicktime": "mov", "video/3gpp": "mov", "video/webm": "matroska",
    "video/matroska": "matroska", "video/x-matroska": "matroska", "video/x-msvideo": "avi", "video/avi": "avi",
    "video/mpeg": "mpeg", "video/mp2t": "mpegts", "video/ogg": "ogg",
}  # fmt: skip
"""Media type → FFmpeg's name of the container."""
_SOUND_CONTAINERS = {"mov": "m4a", "aac": "aac", "matroska": "webm", "ogg": "ogg"}
_PICTURES = {"image/png": ("png",), "image/jpeg": ("jpeg",), "image/jpg": ("jpeg",), "image/webp": ("webp",)}


@dataclass(slots=True)
class Media:
    """The pictures, sounds and videos of one request, in order.

    Attributes:
        pictures: Field of the request → bytes.
        sounds: Likewise.
        videos: Likewise.
        options: How videos are shown.
    """

    pictures: dict[str, bytes] = field(default_factory=dict)
    sounds: dict[str, bytes] = field(default_factory=dict)
    videos: dict[str, bytes] = field(default_factory=dict)
    options: VideoOptions = field(default_factory=VideoOptions)

    def __bool__(self) -> bool:
        return bool(self.pictures or self.sounds or self.videos)

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
        media_type, text = _data_uri(param, url, "pictures", "image/png")
        return self.add_picture(param, text, media_type)

    def add_video_url(self, param: str, url: str) -> str:
        """Takes a video as a data URI, likewise; returns what it is called in the prompt."""
        media_type, text = _data_uri(param, url, "videos", "video/mp4")
        return self.add_video(param, text, media_type)

    def add_video(self, param: str, text: str, media_type: str) -> str:
        """Takes a video in base64, likewise.

        Raises:
            Refusal: If it is none of a kind that is taken.
        """
        if media_type not in _VIDEOS:
            raise Refusal(400, f"{param}: videos are {', '.join(_VIDEOS)}.", param=param)
        data = self._decoded(param, text)
        if container_format(data[:512]) != _VIDEOS[media_type]:
            raise Refusal(400, f"{param} is not what its type says, {media_type}.", param=param)
        self.videos[param] = data
        return param

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
            raise Refusal(400, f"{param} is no sound: WAV, MP3, FLAC, Ogg, M4A, AAC and WebM are.", param=param)
        self.sounds[param] = data
        return param

    def show(self, asked: VideoFields) -> None:
        """Has videos shown as a request asks for it.

        Raises:
            Refusal: If it asks, and there is none: what has no effect is refused.
        """
        options = asked.video_options
        if options is None:
            return
        if not self.videos:
            raise Refusal(400, "mm_processor_kwargs is for videos, and there is none.", param="mm_processor_kwargs")
        self.options = options

    @contextmanager
    def files(self) -> Iterator[MediaFiles]:
        """Files of all of them, inside only. What is wrong with one is said of its field.

        Raises:
            Refusal: If the code inside raises over one.
        """
        with ExitStack() as stack:
            try:
                paths = self._written(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coterie-"))))
            except OSError as error:
                raise _no_file(error) from error
            try:
                yield MediaFiles(
                    images=tuple(str(paths[param]) for param in self.pictures),
                    audios=tuple(str(paths[param]) for param in self.sounds),
                    videos=tuple(str(paths[param]) for param in self.videos),
                    options=self.options,
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
        for number, (param, data) in enumerate({**self.pictures, **self.sounds, **self.videos}.items()):
            # None of these names begins with another: messages are searched for them.
            paths[param] = directory / f"{number:03}"
            paths[param].write_bytes(data)
        return paths

    def _decoded(self, param: str, text: str) -> bytes:
        if len(self.pictures) + len(self.sounds) + len(self.videos) >= MOST_MEDIA:
            raise Refusal(
                400, f"{param}: a request has {MOST_MEDIA} pictures, sounds and videos at most.", param=param
            )  # fmt: skip
        if len(text) > MEDIUM_NBYTES * 4 // 3 + 4:
            raise Refusal(
                400, f"{param}: a picture, sound or video has {MEDIUM_NBYTES:,} bytes at most.", param=param
            )  # fmt: skip
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise Refusal(400, f"{param} is not base64.", param=param) from None


def _data_uri(param: str, url: str, what: str, example: str) -> tuple[str, str]:
    """The media type and the base64 of a data URI."""
    head, comma, text = url.partition(",")
    if not head.lower().startswith("data:") or not comma:
        raise Refusal(
            400, f"{param}: {what} come in the request, as data:{example};base64,…; nothing is fetched.",
            param=param, code="unsupported",
        )  # fmt: skip
    media_type, *parameters = head[len("data:") :].lower().split(";")
    if parameters != ["base64"]:
        raise Refusal(400, f"{param}: a data URI is in base64 here.", param=param)
    return media_type, text


def _no_file(error: OSError) -> Refusal:
    """What a client is told whose pictures and sounds cannot be put into files."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message, code = "The server's disk has no room for pictures, sounds and videos.", "insufficient_storage"
    else:
        message, code = "The server cannot put pictures, sounds and videos into files.", "unavailable"
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
    if (name := _SOUND_CONTAINERS.get(container_format(data[:512]) or "")) is not None:
        return name
    is_frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    return "mp3" if data.startswith(b"ID3") or is_frame else None

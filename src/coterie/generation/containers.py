"""Containers of videos and sounds (MP4, WebM, AVI, M4A and others), decoded by a process that has limits of its own.

PyAV decodes them, which brings FFmpeg's decoders along; :mod:`coterie.generation.media_process` is that process. What
goes wrong in there, whatever it is, ends that process and not this one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.errors import InputError
from coterie.files.regular import regular_file
from coterie.generation.decoding import still_wanted
from coterie.generation.video_options import MOST_RATE
from coterie.hf.limited import start_limited
from coterie.spec import format_bytes, install_advice

Frame = npt.NDArray[np.uint8]

MOST_FRAME_PIXELS = 2**25
"""Pixels of a frame: more than those of 8K."""
MOST_VIDEO_FRAMES = 500_000
"""Frames of a video: more than two hours at 60 a second. All of them are decoded, whichever are wanted."""
_DEFAULT_RATE = 25.0
"""Frames per second of what does not say; FFmpeg's own."""

PROCESS_NBYTES = 96 << 20
"""What the process takes beside frames: its interpreter, and FFmpeg."""
_DECODING_NBYTES = 32
"""Bytes per pixel of a frame that decoders take: those that others are computed from, and one in RGB."""
_ADDRESSES_NBYTES = 1 << 30
"""Address space that the process has besides: most of what libraries and stacks take is never touched."""
_MOST_NBYTES = 4 << 30
"""What it may take where no memory budget says anything."""
_SECONDS = 1800
"""Seconds of processor time of the process."""
_LONGEST_LINE = 1 << 16

_SCRIPT = Path(__file__).with_name("media_process.py")
_CONVERT = "Convert it, for example with: ffmpeg -i INPUT OUTPUT.mp4"
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFacts:
    """What is known of a video before its frames are chosen.

    Attributes:
        frames: How many it has.
        rate: Of them per second, on average.
        height: Pixels of a frame, as it is shown.
        width: Likewise.
        sound: Whether it has a sound track.
    """

    frames: int
    rate: float
    height: int
    width: int
    sound: bool

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.frames / self.rate


class Container:
    """An open file of frames, sound or both; from :func:`open_container`.

    Attributes:
        path: The file.
        video: What is known of its frames; None if it has none.
        sound: Whether it has sound.
    """

    def __init__(self, path: Path, process: subprocess.Popen[bytes], request: dict[str, Any], what: str) -> None:
        self.path = path
        self._process = process
        self._what = what
        told = self._ask(request)
        self.sound = bool(told["sound"])
        self.video = _facts(told["video"], sound=self.sound) if told["video"] else None

    def frames(self, numbers: list[int]) -> Iterator[Frame]:
        """Frames, uint8 [height, width, 3] in RGB, upright.

        Args:
            numbers: Which, in ascending order.

        Raises:
            InputError: If they cannot be decoded.
            RequestCancelledError: If nobody wants them any more.
        """
        assert self.video is not None
        height, width = self.video.height, self.video.width
        self._send({"frames": numbers})
        for _ in numbers:
            still_wanted()
            data = self._data(self._receive(), height * width * 3)
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def samples(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Its sound block by block: the sampling rate, and float32 [samples], the mean of all channels.

        Raises:
            InputError: If it cannot be decoded.
            RequestCancelledError: If nobody wants it any more.
        """
        self._send({"sound": True})
        while "over" not in (answer := self._receive()):
            still_wanted()
            yield int(answer["rate"]), np.frombuffer(self._data(answer, int(answer["nbytes"])), np.float32)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._send(request)
        return self._receive()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # what ended it is found when its answer is read
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise self._failure("its decoder ended without a word")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("memory"):
            raise InputError(
                f"{self._what} {self.path} takes more memory to decode than there is.",
                advice="Use one with smaller frames, or raise the memory budget.",
                path=self.path,
                room=0,
            )
        if "problem" in answer:
            raise self._failure(" ".join(str(answer["problem"]).split())[:300].rstrip("."))
        return answer

    def _data(self, answer: dict[str, Any], nbytes: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(nbytes)
        if answer.get("nbytes") != nbytes or len(data) != nbytes:
            raise self._failure("its decoder ended before its time")
        return data

    def _failure(self, reason: str) -> InputError:
        return InputError(f"{self._what} {self.path} cannot be read: {reason}.", advice=_CONVERT, path=self.path)


@contextmanager
def open_container(path: str | Path, *, what: str, room: int | None = None) -> Iterator[Container]:
    """Opens a file of frames, sound or both.

    Args:
        path: The file.
        what: What it is to be, as the subject of an error: ``The video``.
        room: Bytes of memory that decoding may take; None for no limit of the budget's.

    Raises:
        InputError: If there is no such file, its container is none that is known, it cannot be decoded, PyAV is
            missing, or there is no room. Fact ``path``.
    """
    path = Path(path)
    try:
        with regular_file(path) as file:
            form = container_format(file.read(512))
            if form is None:
                raise InputError(
                    f"{what} {path} is in none of the formats that can be read: MP4, MOV, M4A, WebM, Matroska, AVI, "
                    "MPEG, FLV, ASF, GIF, Ogg, AAC, AMR.",
                    advice=_CONVERT,
                    path=path,
                )
            with _decoder(path, file, what, room) as process:
                yield Container(path, process, _request(path, file, form), what)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"There is no {what.removeprefix('The ')} file {path}.", path=path) from error
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror or error}.", path=path) from error


def container_format(head: bytes) -> str | None:
    """FFmpeg's name of the container that a file's first 512 bytes are of; None if it is none that is read here.

    Playlists and lists of files, which name others to be opened, are none.
    """
    starts = {
        b"\x1aE\xdf\xa3": "matroska", b"OggS": "ogg", b"FLV\x01": "flv", b"\x00\x00\x01\xba": "mpeg",
        b"\x00\x00\x01\xb3": "mpegvideo", b"0&\xb2u": "asf", b"GIF8": "gif", b"#!AMR": "amr",
    }  # fmt: skip
    if head[4:8] in _BOXES:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if len(head) > 188 and head[0] == head[188] == 0x47:
        return "mpegts"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    return next((name for start, name in starts.items() if head.startswith(start)), None)


@contextmanager
def _decoder(path: Path, file: BufferedReader, what: str, room: int | None) -> Iterator[subprocess.Popen[bytes]]:
    if find_spec("av") is None:
        raise InputError(f"{what} {path} cannot be read without PyAV.", advice=install_advice("video"), path=path)
    check_room(path, what, PROCESS_NBYTES, room)
    memory = _ADDRESSES_NBYTES + (_MOST_NBYTES if room is None else room)
    files = () if os.name == "nt" else (file.fileno(),)
    process = start_limited(_SCRIPT, ("av", "numpy"), memory=memory, seconds=_SECONDS, files=files)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def decoding_nbytes(facts: VideoFacts) -> int:
    """Bytes that decoding a video takes at most, its process included."""
    return PROCESS_NBYTES + facts.height * facts.width * _DECODING_NBYTES


def check_room(path: Path, what: str, needed: int, room: int | None) -> None:
    """Refuses what would take more memory than there is.

    Raises:
        InputError: With what it takes.
    """
    if room is not None and needed > room:
        raise InputError(
            f"{what} {path} takes {format_bytes(needed)} to decode; the memory budget leaves "
            f"{format_bytes(max(0, room))}.",
            advice="Use fewer or smaller frames, or raise the budget.",
            path=path,
            needed=needed,
            room=room,
        )


def _request(path: Path, file: BufferedReader, form: str) -> dict[str, Any]:
    return {
        "file": str(path) if os.name == "nt" else file.fileno(),
        "format": form,
        "most_pixels": MOST_FRAME_PIXELS,
        "most_frames": MOST_VIDEO_FRAMES,
    }


def _facts(told: dict[str, Any], *, sound: bool) -> VideoFacts:
    rate = float(told["rate"])
    return VideoFacts(
        frames=int(told["frames"]),
        rate=rate if 0 < rate <= MOST_RATE else _DEFAULT_RATE,
        height=int(told["height"]),
        width=int(told["width"]),
        sound=sound,
    )

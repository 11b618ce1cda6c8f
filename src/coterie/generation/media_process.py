"""Decodes videos and sounds with PyAV in a process of its own: decoders are large, and files may come from anywhere.

Run by :mod:`coterie.hf.limited_process`. It reads requests from stdin, one JSON object a line, and answers each with
JSON lines on stdout. After a line that has ``nbytes``, so many bytes follow. An answer with ``problem`` is the last.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

_THREADS = 2
_BLOCK_VALUES = 1 << 18
"""Samples of all channels that are sent at a time."""


class Problem(Exception):
    """What is wrong with the file."""


class File:
    """A media file.

    Args:
        file: The file, open for reading.
        form: FFmpeg's name of its container. No other is tried: some name further files, and addresses.
        most_pixels: The most that a frame may have.
        most_frames: The most frames that a video may have.
    """

    def __init__(self, file: Any, form: str, most_pixels: int, most_frames: int) -> None:
        self._file = file
        self._form = form
        self._most_pixels = most_pixels
        self._most_frames = most_frames
        self._size = (0, 0)
        self._frames = 0

    def survey(self) -> dict[str, Any]:
        """What is in it. Packets are counted: what headers say of lengths may be anything."""
        with self._open() as container:
            video, sound = _video_of(container), _sound_of(container)
            facts: dict[str, Any] = {"sound": sound is not None, "video": None}
            if video is None:
                return facts
            for packet in container.demux(video):
                self._frames += packet.size > 0
                if self._frames > self._most_frames:
                    raise Problem(f"it has more than {self._most_frames:,} frames")
            rate = video.average_rate or video.guessed_rate or video.base_rate
        first = next(self._decoded(), None)
        if first is None or not self._frames:
            raise Problem("it has no frame that can be decoded")
        height, width = first.shape[:2]
        self._size = (height, width)
        facts["video"] = {"frames": self._frames, "rate": float(rate or 0), "height": height, "width": width}
        return facts

    def frames(self, wanted: list[int]) -> Iterator[Any]:
        """Frames by their numbers in ascending order, uint8 [height, width, 3]; the last one for those past the end."""
        left = iter(wanted)
        number, last, done = next(left, None), None, 0
        if number is None:
            return
        for place, frame in enumerate(self._decoded(set(wanted) | {self._frames - 1})):
            done, last = place + 1, last if frame is None else frame
            while number is not None and number == place:
                yield frame
                number = next(left, None)
            if number is None:
                return
        if last is None or done < 0.9 * self._frames:
            raise Problem(f"it is truncated: {self._frames} frames are announced, {done} can be decoded")
        while number is not None:
            yield last
            number = next(left, None)

    def sound(self) -> Iterator[tuple[int, Any]]:
        """The rate and the mean of all channels, float32, block by block."""
        import av
        import numpy

        with self._open() as container:
            stream = _sound_of(container)
            if stream is None:
                raise Problem("it has no sound")
            made: Any = None
            held: list[Any] = []
            count = 0
            for frame in self._frames_of(container, stream):
                if made is None:
                    made = av.AudioResampler(format="fltp", layout=frame.layout, rate=frame.sample_rate)
                    most = max(1, _BLOCK_VALUES // max(1, len(frame.layout.channels)))
                for one in made.resample(frame):
                    held.append(one.to_ndarray().mean(axis=0, dtype=numpy.float32))
                    count += len(held[-1])
                if count >= most:
                    yield made.rate, numpy.concatenate(held)
                    held, count = [], 0
            if made is not None:
                held += [one.to_ndarray().mean(axis=0, dtype=numpy.float32) for one in made.resample(None)]
                if held:
                    yield made.rate, numpy.concatenate(held)

    def _decoded(self, wanted: set[int] | None = None) -> Iterator[Any]:
        """All frames in order as arrays; None in place of those that are not wanted."""
        with self._open() as container:
            stream = _video_of(container)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = _THREADS
            for place, frame in enumerate(self._frames_of(container, stream)):
                if wanted is not None and place not in wanted:
                    yield None
                    continue
                if frame.width * frame.height > self._most_pixels:
                    raise Problem(f"it has frames of {frame.width} × {frame.height} pixels, which are too many")
                yield self._upright(frame)

    def _upright(self, frame: Any) -> Any:
        """A frame as it is to be shown: turned, and in the size of the first."""
        import numpy

        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        size = self._size[::-1] if turns % 2 else self._size
        if self._size != (0, 0) and (frame.height, frame.width) != size:
            frame = frame.reformat(width=size[1], height=size[0], format="rgb24")
        return numpy.ascontiguousarray(numpy.rot90(frame.to_ndarray(format="rgb24"), turns))

    def _frames_of(self, container: Any, stream: Any) -> Iterator[Any]:
        """What a stream decodes to. A packet that is damaged is left out, as players do."""
        import av

        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                continue

    def _open(self) -> Any:
        import av

        self._file.seek(0)
        options = {"max_pixels": str(self._most_pixels)}
        # Titles and the like are in any encoding, and nobody reads them.
        return av.open(self._file, mode="r", format=self._form, options=options, metadata_errors="replace")


def _video_of(container: Any) -> Any:
    """The first stream of frames that is no cover picture."""
    import av

    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return None


def _sound_of(container: Any) -> Any:
    return next((one for one in container.streams.audio if one.codec_context is not None), None)


def main() -> None:
    """Answers requests until there are no more."""
    out = open(1, "wb", closefd=False)  # noqa: SIM115 - as long as the process

    def say(answer: dict[str, Any], data: Any = None) -> None:
        if data is not None:
            answer["nbytes"] = data.nbytes
        out.write(json.dumps(answer).encode() + b"\n")
        if data is not None:
            out.write(data.data)
        out.flush()

    try:
        _serve(say)
    except Problem as problem:
        say({"problem": str(problem)})
    except MemoryError:
        say({"problem": "it takes more memory than there is", "memory": True})
    except BrokenPipeError:
        raise
    except Exception as error:  # decoders meet anything in a file, and raise anything over it
        no_memory = isinstance(error, OSError) and error.errno == 12
        say({"problem": str(getattr(error, "strerror", None) or error) or type(error).__name__, "memory": no_memory})


def _serve(say: Any) -> None:
    import av

    av.logging.set_level(None)
    first = json.loads(sys.stdin.readline())
    with open(first["file"], "rb") as file:  # a path, or the number of a descriptor
        opened = File(file, first["format"], first["most_pixels"], first["most_frames"])
        say(opened.survey())
        for line in sys.stdin:
            request = json.loads(line)
            if "frames" in request:
                for frame in opened.frames(request["frames"]):
                    say({}, frame)
                continue
            for rate, samples in opened.sound():
                say({"rate": rate}, samples)
            say({"over": True})


if __name__ == "__main__":
    main()

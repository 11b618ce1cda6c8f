"""Short videos, with sound or without, made as they are needed: moving stripes, and a tone."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

RATE = 16_000


def write_film(
    path: Path,
    *,
    frames: int = 24,
    size: tuple[int, int] = (64, 48),
    rate: int = 12,
    tone: float | None = None,
    codec: str = "mpeg4",
    sound_codec: str = "aac",
    sound_rate: int = RATE,
) -> Path:
    """Writes a video of ``frames`` frames of (width, height) at a rate; a tone of so many Hz plays as long."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate)
        video.width, video.height = size
        video.pix_fmt = {"mjpeg": "yuvj420p", "ffv1": "bgr0"}.get(codec, "yuv420p")  # the last without any loss
        video.bit_rate = 4_000_000
        sound = None if tone is None else container.add_stream(sound_codec, rate=sound_rate, layout="mono")
        for number in range(frames):
            for packet in video.encode(av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")):
                container.mux(packet)
        container.mux(video.encode())
        if sound is not None:
            seconds = frames / rate
            samples = 0.4 * np.sin(2 * np.pi * tone * np.arange(int(sound_rate * seconds)) / sound_rate)
            frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = sound_rate, 0, Fraction(1, sound_rate)
            for one in av.AudioResampler(
                format=sound.format, layout="mono", rate=sound_rate, frame_size=sound.codec_context.frame_size or 1024
            ).resample(frame):
                container.mux(sound.encode(one))
            container.mux(sound.encode())
    return path


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """Frame of a number, uint8 [height, width, 3]."""
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    red = 128 + 100 * np.sin((x + 3 * number) / 5)
    green = 255 * ((y + number) % 16 < 8)
    return np.stack([red, green, np.full_like(red, (10 * number) % 256)], axis=-1).astype(np.uint8)

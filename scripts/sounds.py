"""Writes docs/sounds: what the bundled omni model says, as WAV files, and a picture of their spectra.

    python scripts/sounds.py

The likeliest code is taken at each step, so the model says the same each time. Needs the extra ``analysis``.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "sounds"
QUESTION = "dog-asked.wav"
PICTURE = "spectra.png"

WINDOW_S, HOP_S = 0.02, 0.005
DEEPEST_DB = -70.0
HIGHEST_HZ = 8000.0

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """A sound on the page.

    Attributes:
        name: Of its file.
        title: What it is.
        samples: float32 [samples].
        rate: Samples per second.
    """

    name: str
    title: str
    samples: Samples
    rate: int


def main() -> int:
    """Writes all of it."""
    import coterie
    from coterie.analysis.plots.canvas import render
    from coterie.generation.sound import read_sound
    from coterie.generation.wav_writer import wav_file

    FOLDER.mkdir(exist_ok=True)
    question = coterie.samples()["dog.wav"]
    shutil.copy(question, FOLDER / QUESTION)
    recordings = [Recording(QUESTION, "Asked: “dog”", read_sound(question, rate=16_000), 16_000)]
    with coterie.load("bundled-omni", expert_memory="100%") as model:
        recordings += [
            _answered(model, question, "ada"),
            _answered(model, question, "ben"),
            _read(model, "seven", "ada"),
        ]
    for one in recordings[1:]:
        with wav_file(FOLDER / one.name, one.rate) as writer:
            writer.write(one.samples)
    # With a palette it has a third of the bytes.
    Image.open(BytesIO(render(_drawn(recordings), "png"))).convert("RGB").quantize(128).save(FOLDER / PICTURE)
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")
    return 0


def _answered(model: Any, question: Path, voice: str) -> Recording:
    """What the model says that it has heard."""
    import coterie

    asked = [{"role": "user", "content": [{"type": "audio", "path": str(question)}]}]
    wishes = coterie.Sampling(max_new_tokens=6, greedy=True)
    speech = coterie.speak(model, asked, wishes, voice=coterie.Voice(name=voice, greedy=True)).result()
    word = speech.completion.text.strip()
    return Recording(f"{word}-{voice}.wav", f"{voice}: “{word}”", speech.samples, 24_000)


def _read(model: Any, word: str, voice: str) -> Recording:
    """A word that it is given to read out."""
    import coterie

    speech = coterie.read_aloud(model, word, voice=coterie.Voice(name=voice, greedy=True)).result()
    return Recording(f"{word}-{voice}.wav", f"{voice} reads: “{word}”", speech.samples, 24_000)


def _drawn(recordings: list[Recording]) -> Any:
    """Spectrograms beside each other, on one scale of time."""
    from matplotlib import colormaps

    from coterie.analysis.plots.canvas import SEQUENTIAL, new_figure, style

    with style():
        figure = new_figure("What is asked, and what the bundled omni model says", 2.6)
        panels = figure.subplots(1, len(recordings), sharey=True)
        longest = max(len(one.samples) / one.rate for one in recordings)
        for axes, one in zip(panels, recordings, strict=True):
            levels = spectrogram(one.samples, one.rate)
            seconds, highest = levels.shape[1] * HOP_S, min(HIGHEST_HZ, one.rate / 2) / 1000
            image = axes.imshow(
                levels, origin="lower", aspect="auto", extent=(0, seconds, 0, highest), cmap=colormaps[SEQUENTIAL],
                vmin=DEEPEST_DB, vmax=0,
            )  # fmt: skip
            axes.set(title=one.title, xlabel="seconds", xlim=(0, longest), ylim=(0, HIGHEST_HZ / 1000))
        panels[0].set_ylabel("kHz")
        figure.colorbar(image, ax=panels, label="dB below the loudest", pad=0.01)
    return figure


def spectrogram(samples: Samples, rate: int) -> npt.NDArray[np.float64]:
    """Levels of a sound in decibels, from :data:`DEEPEST_DB` to 0 at the loudest, float64 [frequencies, times].

    Args:
        samples: The sound, float32 [samples].
        rate: Samples per second.
    """
    window, hop = int(WINDOW_S * rate), int(HOP_S * rate)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, window // 2), window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    kept = power[:, np.fft.rfftfreq(window, 1 / rate) <= HIGHEST_HZ]
    levels = 10 * np.log10(np.maximum(kept / kept.max(), 10 ** (DEEPEST_DB / 10)))
    # What machines differ in is less than half a decibel.
    rounded: npt.NDArray[np.float64] = np.round(2 * levels.T) / 2
    return rounded


if __name__ == "__main__":
    sys.exit(main())

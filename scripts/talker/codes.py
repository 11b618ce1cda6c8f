"""Codes of recordings: residual k-means over the log-mel spectrum of each frame.

A neural codec would learn an encoder too. With half a minute of speech there is nothing to learn: the codes name the
frames, and what a frame sounds like is left to the vocoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from talker.synthesis import FRAME, RATE, Samples

Codes = npt.NDArray[np.int64]
_Values = npt.NDArray[np.float64]

_WINDOW, _HOP = 1024, 480
_BANDS, _LOWEST_HZ, _HIGHEST_HZ = 40, 60.0, 8000.0
_ROUNDS = 40


def quantised(recordings: Sequence[Samples], *, groups: int, entries: int, seed: int) -> list[Codes]:
    """Codes of each recording, int64 [frames, groups], from codebooks made for all of them.

    Args:
        recordings: float32 [samples] at :data:`RATE`, of whole frames.
        groups: Codebooks; each names what the ones before it leave.
        entries: Codes in each.
        seed: Of the first entries, which are drawn among the frames.
    """
    filters = _mel_filters()
    features = [_features(samples, filters) for samples in recordings]
    left = np.concatenate(features)
    left = left - left.mean(0)
    whole, draw = float((left**2).mean()), np.random.default_rng(seed)
    columns = []
    for group in range(groups):
        book, nearest = _k_means(left, entries, draw)
        columns.append(nearest)
        left = left - book[nearest]
        print(f"codebook {group + 1} of {groups}: {100 * float((left**2).mean()) / whole:.1f} % of variance is left")
    codes = np.stack(columns, axis=1)
    ends = np.cumsum([len(one) for one in features])
    return [np.asarray(part, np.int64) for part in np.split(codes, ends[:-1])]


def _features(samples: Samples, filters: _Values) -> _Values:
    """Log-mel energies of each frame, [frames, hops of a frame × bands]."""
    padded = np.pad(samples, (_WINDOW // 2, _WINDOW // 2))
    starts = range(0, len(samples), _HOP)
    windows = np.stack([padded[start : start + _WINDOW] for start in starts]) * np.hanning(_WINDOW)
    energies = np.log(np.abs(np.fft.rfft(windows)) @ filters.T + 1e-3)
    return energies.reshape(-1, FRAME // _HOP * _BANDS)


def _mel_filters() -> _Values:
    """Triangular filters, [bands, frequencies] (the mel scale of O'Shaughnessy, 1987)."""
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (_LOWEST_HZ, _HIGHEST_HZ))
    edges = 700 * (10 ** (np.linspace(lowest, highest, _BANDS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    below, centre, above = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - below) / (centre - below), (above - frequencies) / (above - centre)
    return np.clip(np.minimum(rising, falling), 0, None)


def _k_means(values: _Values, entries: int, draw: np.random.Generator) -> tuple[_Values, Codes]:
    """A codebook, [entries, features], and the nearest entry of each value."""
    book = values[draw.choice(len(values), entries, replace=False)].copy()
    for _ in range(_ROUNDS):
        nearest = _nearest(values, book)
        for entry in np.unique(nearest):
            book[entry] = values[nearest == entry].mean(0)
    return book, _nearest(values, book)


def _nearest(values: _Values, book: _Values) -> Codes:
    distances = (values**2).sum(1)[:, None] - 2 * values @ book.T + (book**2).sum(1)[None]
    return np.asarray(distances.argmin(1), np.int64)

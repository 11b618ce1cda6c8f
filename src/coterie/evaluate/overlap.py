"""Whether a text is one that a model was calibrated on.

Of all sequences of 16 tokens every 32nd is kept, chosen by its fingerprint, so that the same ones are chosen in every
text, wherever they are in it (Manber 1994, *Finding similar files in a large file system*). The share of a text's kept
sequences that calibration met too is about the share of the text that calibration read, however texts were cut into
files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

LENGTH = 16
"""Tokens of a sequence: longer than what different documents have in common by chance."""

_EVERY = 32
_LEAST_DISTINCT = 8
"""Different tokens of a sequence: rules, indents and numbers in columns are the same in documents that are not."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Of splitmix64 (Steele, Lea, Flood 2014)."""


def kept_sequences(texts: Iterable[Sequence[int]]) -> tuple[str, ...]:
    """Fingerprints of those sequences of some texts that are kept, in 16 hex digits each, in ascending order.

    Args:
        texts: Token ids of each.
    """
    found: set[str] = set()
    for ids in texts:
        if len(ids) >= LENGTH:
            found.update(f"{value:016x}" for value in _kept(np.asarray(ids, dtype=np.uint64)).tolist())
    return tuple(sorted(found))


def shared(ids: Sequence[int], sequences: Iterable[str]) -> float:
    """About which share of a text others have in common with it, from 0 to 1.

    Args:
        ids: The text's tokens.
        sequences: Those of the others, from :func:`kept_sequences`.
    """
    own = kept_sequences([ids])
    return len(set(own) & set(sequences)) / len(own) if own else 0.0


def _kept(ids: np.ndarray) -> np.ndarray:
    """The fingerprints, uint64, of the sequences of a text that are kept."""
    windows = sliding_window_view(ids, LENGTH)
    hashes = np.zeros(len(windows), dtype=np.uint64)
    for column in range(LENGTH):
        hashes = _mixed(hashes * _MULTIPLIER + windows[:, column])
    chosen = np.flatnonzero(hashes % np.uint64(_EVERY) == 0)
    ordered = np.sort(windows[chosen], axis=1)
    distinct = (np.diff(ordered, axis=1) != 0).sum(axis=1) + 1
    kept: np.ndarray = hashes[chosen[distinct >= _LEAST_DISTINCT]]
    return kept


def _mixed(values: np.ndarray) -> np.ndarray:
    for shift, mixer in zip((30, 27), _MIXERS, strict=True):
        values = (values ^ (values >> np.uint64(shift))) * mixer
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed

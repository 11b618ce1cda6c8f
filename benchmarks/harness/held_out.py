"""Texts in two parts that share no document, and how one model's divergence compares with another's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coterie.evaluate import read_text
from coterie.evaluate.confidence import student_quantile


def split(path: Path) -> tuple[str, str]:
    """The documents of a text to decide by, and those to score on.

    Documents are what blank lines separate. A document's SHA-256 says what it is for: if its first byte is even, it
    decides, else it is scored. So no document is used for both, whoever repeats this.
    """
    documents = [one for one in read_text(path).split("\n\n") if one.strip()]
    parts: tuple[list[str], list[str]] = ([], [])
    for document in documents:
        parts[hashlib.sha256(document.encode()).digest()[0] % 2].append(document)
    return "\n\n".join(parts[0]), "\n\n".join(parts[1])


def split_into(path: Path, folder: Path, domain: str) -> tuple[Path, Path]:
    """As :func:`split`, in two files."""
    files = folder / f"{domain}-decides.txt", folder / f"{domain}-scored.txt"
    for file, part in zip(files, split(path), strict=True):
        file.write_text(part, encoding="utf-8")
    return files


def ratio(one: NDArray[np.float64], base: NDArray[np.float64]) -> tuple[float, float]:
    """The ratio of two sums over windows, and half of its 95 % interval by the jackknife."""
    count = len(one)
    without = (one.sum() - one) / (base.sum() - base)
    spread = float(np.sqrt((count - 1) / count * np.square(without - without.mean()).sum()))
    return float(one.sum() / base.sum()), student_quantile(count - 1) * spread

"""Texts to calibrate a small model on, and a store that was."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from coterie.calibration import Calibration
from coterie.extraction import quantize
from coterie.survey import gather
from zoo.sizes import TEXT_IDS

TOKENS = 400
"""That the small model is calibrated on."""


def words(folder: Path, domain: str, count: int = 300) -> Path:
    """A text of words that the small model knows, the same for the same domain."""
    chosen = random.Random(domain)
    path = folder / f"{domain}.txt"
    path.write_text(" ".join(f"w{chosen.randint(3, TEXT_IDS)}" for _ in range(count)), encoding="utf-8")
    return path


@pytest.fixture
def calibration(tmp_path: Path) -> Calibration:
    material = [one for domain in ("code", "prose") for one in gather("text", domain, words(tmp_path, domain))]
    return Calibration(material=material, tokens=TOKENS, memory="4GiB")


@pytest.fixture
def fresh(readable: Path, tmp_path: Path, calibration: Calibration) -> Path:
    quantize(readable, tmp_path / "fresh", scheme="int4", calibration=calibration)
    return tmp_path / "fresh"

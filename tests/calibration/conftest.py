"""Texts to calibrate a small model on, and a store that was."""

from __future__ import annotations

import random
import shutil
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


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    folder = tmp_path_factory.mktemp("texts")
    material = [one for domain in ("code", "prose") for one in gather("text", domain, words(folder, domain))]
    return Calibration(material=material, tokens=TOKENS, memory="4GiB")


@pytest.fixture(scope="session")
def calibrated(readable: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody changes it."""
    store = tmp_path_factory.mktemp("calibrated") / "store"
    quantize(readable, store, scheme="int4", calibration=calibration)
    return store


@pytest.fixture
def fresh(calibrated: Path, tmp_path: Path) -> Path:
    """A copy of it for whoever asks."""
    shutil.copytree(calibrated, tmp_path / "fresh")
    return tmp_path / "fresh"

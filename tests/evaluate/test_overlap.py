"""A text that a model was calibrated on is recognised, whole or in part, wherever it begins."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from coterie.calibration import Calibration
from coterie.evaluate import evaluate
from coterie.evaluate.overlap import LENGTH, kept_sequences, shared
from coterie.extraction import quantize
from coterie.survey import gather
from zoo.sizes import TEXT_IDS


def ids(seed: int, count: int = 4000) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randint(0, 50_000) for _ in range(count)]


def test_the_share_of_a_text_is_about_what_it_is() -> None:
    known = kept_sequences([ids(1), ids(2)])
    assert len(known) == pytest.approx(2 * 4000 / 32, rel=0.3)
    assert list(known) == sorted(set(known))
    assert shared(ids(1), known) == 1
    assert shared(ids(1)[777:2777], known) == 1
    assert shared(ids(3), known) == 0
    assert shared(ids(3) + ids(2)[:2000], known) == pytest.approx(1 / 3, abs=0.1)


def test_what_says_nothing_is_not_kept() -> None:
    assert kept_sequences([[5] * 10_000, [1, 2, 3] * 4000, list(range(LENGTH - 1)), []]) == ()
    assert shared([1] * 100, kept_sequences([ids(1)])) == 0


def test_an_evaluation_tells_of_it(readable: Path, tmp_path: Path) -> None:
    def text(seed: int) -> Path:
        chosen = random.Random(seed)
        path = tmp_path / f"text-{seed}.txt"
        path.write_text(" ".join(f"w{chosen.randint(3, TEXT_IDS)}" for _ in range(600)))
        return path

    met, other = text(1), text(2)
    mixed = tmp_path / "mixed.txt"
    mixed.write_text(f"{other.read_text()} {met.read_text()}")
    calibration = Calibration(material=gather("text", "prose", met), tokens=600, memory="4GiB")
    quantize(readable, tmp_path / "store", scheme="int4", calibration=calibration)
    found = evaluate(tmp_path / "store", [met, other, mixed], expert_memory="4MiB").calibrated_on
    assert found is not None
    assert found[0] > 0.8  # but for the sequences that lie across two windows
    assert found[1] == 0
    assert 0.2 < found[2] < 0.8
    assert evaluate(readable, [met], expert_memory="4MiB").calibrated_on is None

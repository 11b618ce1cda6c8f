"""The files that a decode step runs through stay few: who wants to follow one has to read them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from coterie.native import library

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "crossed.py"

MOST = {"resident": (9, 6), "with a miss": (21, 18), "int4, resident": (16, 7), "int4, with a miss": (32, 24)}
"""Kind of step → files at the most, and of these for a layer's experts. Where it has become fewer, write that here."""


@pytest.fixture(scope="module")
def crossed() -> dict[str, dict[str, list[str]]]:
    """Kind of step → which files → their names."""
    if library() is None:
        pytest.skip("the native library was not built")
    done = subprocess.run([sys.executable, str(SCRIPT), "--json"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, list[str]]] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", MOST)
def test_a_decode_step_crosses_few_files(crossed: dict[str, dict[str, list[str]]], kind: str) -> None:
    all_of_them, of_experts = crossed[kind]["all"], crossed[kind]["experts"]
    assert len(all_of_them) <= MOST[kind][0], all_of_them
    assert len(of_experts) <= MOST[kind][1], of_experts
    assert set(of_experts) < set(all_of_them)


@pytest.mark.timeout(600)
def test_what_is_entered_is_seen(crossed: dict[str, dict[str, list[str]]]) -> None:
    assert crossed.keys() == MOST.keys()
    for kind, files in crossed.items():
        assert {"passes/clock.py", "passes/current.py"} <= set(files["all"])
        assert "passes/bank.py" in files["experts"]
        # In a thread of its own, and only where something is read.
        assert ("records/readers.py" in files["experts"]) == kind.endswith("a miss")
        assert all((SCRIPT.parent.parent / "src" / "coterie" / name).exists() for name in files["all"])

"""Random faults, by number: whatever happens, the end is a right store, or one error that names file and cause."""

from __future__ import annotations

import os
import random
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from coterie.errors import CoterieError
from coterie.extraction import extract
from coterie.inspection import verify

from .conftest import REPO
from .hub import Fault, Kind, LocalHub

_KINDS: tuple[Kind, ...] = ("status", "reset", "close", "stall", "corrupt", "unranged", "short")
_FILE = re.compile(
    r"config\.json|model-\S+safetensors|model\.safetensors\.index\.json|generation_config\.json|someone/tiny-moe"
)
_CAUSE = re.compile(
    r"answered \d{3}|connection broke|no connection|no answer for|bytes (of its header )?were sent|"
    r"another part of the file|(SHA-256|git blob id) is|cannot be read|"
    r"the server has only|not a valid safetensors file|another header|which does not have it"
)


def some_faults(dice: random.Random, directory: Path) -> list[Fault]:
    files = [path.name for path in directory.iterdir()]
    places = ["", "api", "hub", "cdn", "cdn model-0000[1-3]", *(rf"(hub|cdn) {re.escape(file)}$" for file in files)]
    now = datetime.now(UTC)

    def fault() -> Fault:
        waits = [
            {},
            {"Retry-After": str(dice.choice([0, 1, 20, 4000]))},
            {"RateLimit": f'"api";r=0;t={dice.randrange(90)}'},
        ]
        waits.append(
            {"Retry-After": format_datetime(now + timedelta(seconds=dice.choice([-5, 9, 10**5])), usegmt=True)}
        )
        return Fault(
            dice.choice(_KINDS),
            dice.choice(places),
            count=dice.choice([1, 1, 2, 3, 7, None]),
            after=dice.choice([0, 0, 1, 8, 9, 500, 20_000, dice.randrange(40_000)]),
            status=dice.choice([200, 206, 301, 302, 400, 401, 403, 404, 408, 416, 429, 429, 500, 502, 503, 503, 504]),
            headers=dice.choice(waits),
            seconds=dice.choice([0.01, 1.0]),
        )

    return [fault() for _ in range(dice.choice([1, 1, 2, 3, 5]))]


def run_schedule(seed: int, hub: LocalHub, directory: Path, place: Path, monkeypatch) -> str:
    """Extracts under faults, and once more without; returns how the first time ended."""
    dice = random.Random(seed)
    cache, store = place / "cache", place / "store"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    hub.faults[:] = some_faults(dice, directory)
    told = f"seed {seed}: {hub.faults}"
    message = ""
    try:
        extract(REPO, store)
    except CoterieError as error:
        message = str(error)
    if message:
        assert _FILE.search(message), f"{message} names no file; {told}"
        assert _CAUSE.search(message), f"{message} names no cause; {told}"
        hub.faults.clear()
        extract(REPO, store)
    assert verify(store, against=directory).problems == (), told
    assert not list(cache.rglob("*.incomplete")), told
    return "error" if message else "right"


def run_schedules(seeds: range, hub: LocalHub, directory: Path, tmp_path: Path, monkeypatch) -> dict[str, int]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.15)
    outcomes = {"right": 0, "error": 0}
    for seed in seeds:
        outcomes[run_schedule(seed, hub, directory, tmp_path / str(seed), monkeypatch)] += 1
    return outcomes


def test_some_schedules_of_faults(hub, text, waits, tmp_path, monkeypatch):
    outcomes = run_schedules(range(8), hub, text, tmp_path, monkeypatch)
    assert min(outcomes.values()) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_schedules_of_faults(hub, text, waits, tmp_path, monkeypatch):
    """``COTERIE_HUB_SCHEDULES`` says how many."""
    count = int(os.environ.get("COTERIE_HUB_SCHEDULES", "200"))
    outcomes = run_schedules(range(1000, 1000 + count), hub, text, tmp_path, monkeypatch)
    print(outcomes)
    assert count < 20 or min(outcomes.values()) > 0

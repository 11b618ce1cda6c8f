"""Killed at any moment, with wrong bytes now and then: in the end the right store, or an error that says why."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkpoint.conftest import REPO, cache, hub, publish, text  # noqa: F401 - fixtures
from checkpoint.hub import Fault, LocalHub
from coterie.extraction import extract
from coterie.inspection import verify
from coterie.store import is_store, names

from .test_network import content

_EXTRACT = "import sys; from coterie.cli import main; sys.exit(main(sys.argv[1:]))"


def begin(hub: LocalHub, cache: Path, store: Path, *options: str) -> subprocess.Popen[str]:  # noqa: F811
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", _EXTRACT, "extract", REPO, str(store), *options],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills(hub, text, cache, tmp_path):  # noqa: F811
    """``COTERIE_KILLS`` says how many."""
    kills, dice = int(os.environ.get("COTERIE_KILLS", "20")), random.Random(7)
    extract(REPO, tmp_path / "right", keep_download=True)
    for path in cache.rglob("*.safetensors"):
        path.unlink()
    expected = content(tmp_path / "right")
    killed = finished = said = 0
    store = tmp_path / "store"
    shards = sorted(path.name for path in text.glob("*.safetensors"))
    while killed < kills:
        hub.faults[:] = (
            [Fault("corrupt", f"GET cdn {dice.choice(shards)}", after=20_000)] if dice.random() < 0.3 else []
        )
        process = begin(hub, cache, store, "--max-rate", "70KB/s")
        deadline = time.monotonic() + 120
        while process.poll() is None and not (store / names.JOURNAL).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            _, error = process.communicate(timeout=dice.uniform(0.0, 9.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            continue
        if process.returncode:
            assert "arrived with other bytes than the Hub says" in error or "not a valid safetensors file" in error
            assert "model-0000" in error
            said += 1
            continue
        finished += 1
        assert content(store) == expected
        store = tmp_path / f"store-{finished}"
    hub.faults.clear()
    for _ in range(2):
        process = begin(hub, cache, store)
        process.communicate()
    print({"killed": killed, "finished": finished, "errors": said})
    assert is_store(store)
    assert content(store) == expected
    assert verify(store, against=text).problems == ()

"""Codes that workers of a Ray choose are those that a single process chooses: `make test-ray`."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from calibration.conftest import TOKENS, words
from coterie.calibration import Calibration, solving
from coterie.extraction import Progress, quantize
from coterie.survey import gather
from extraction.stores import snapshot
from on_ray.processes import worker_pids

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]


def test_a_store_is_the_same_though_all_workers_are_killed(
    cluster: str, readable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = [one for domain in ("code", "prose") for one in gather("text", domain, words(tmp_path, domain))]
    calibration = Calibration(material=material, tokens=TOKENS, memory="4GiB")
    quantize(readable, tmp_path / "here", scheme="int4", calibration=calibration)
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if not killed:
            killed.extend(worker_pids())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(solving, "choose_codes", lambda *_: pytest.fail("this process has others choose"))
    there = replace(calibration, ray=cluster)
    with pytest.warns(UserWarning, match="A worker was lost"):
        quantize(readable, tmp_path / "there", scheme="int4", calibration=there, progress=kill)
    assert killed
    assert snapshot(tmp_path / "there") == snapshot(tmp_path / "here")

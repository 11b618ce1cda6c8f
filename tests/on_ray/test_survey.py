"""A profile that workers of a Ray record is the one that a single process records: `make test-ray`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import coterie as coterie_package
from coterie.cluster.workers import RemoteModel
from coterie.errors import ClusterError
from coterie.profiles import ProfileDatabase
from coterie.spec.opening import Opening
from coterie.survey import Material, Survey, gather, survey
from on_ray.processes import worker_pids
from profiles.contents import contents

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

OPENING = Opening(memory="1GiB", threads=1)
SAMPLES = Path(coterie_package.__file__).parent / "bundled" / "samples"


def recorded(path: Path) -> dict[str, Any]:
    """All that is in a profile of one run, to the last bit, without what names the run."""
    with ProfileDatabase(path) as database:
        (found,) = contents(database).values()
    found["run"] = (found["run"].identity, found["run"].banks)
    return found


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> list[Material]:
    folder = tmp_path_factory.mktemp("texts")
    drawn = random.Random(1)
    words = "the king said that a river is deep and no one can cross it in summer".split()  # noqa: SIM905
    for name in ("a", "b", "c"):
        text = "\n".join(" ".join(drawn.choice(words) for _ in range(12)) for _ in range(60))
        (folder / f"{name}.txt").write_text(text)
    texts = gather("text", "one", folder / "a.txt") + gather("text", "two", folder / "[bc].txt")
    return texts + gather("images", "pictures", SAMPLES) + gather("speech", "sounds", SAMPLES)


def survey_here(material: list[Material], path: Path, **options: Any) -> Survey:
    """As this process does it by itself."""
    from coterie.generation.opened import OpenModel

    # In this process is more than in a worker: whatever other tests have imported.
    opened = OpenModel.open("bundled", replace(OPENING, memory="4GiB"))
    try:
        return survey(opened, path, material, context=128, **options)
    finally:
        opened.model.coterie.close()


@pytest.fixture(scope="module")
def here(material: list[Material], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile that this process records."""
    path = tmp_path_factory.mktemp("here") / "p.db"
    survey_here(material, path)
    return path


def test_workers_of_which_one_is_killed_record_the_same(
    cluster: str, material: list[Material], here: Path, tmp_path: Path
) -> None:
    told: list[int] = []

    def kill(nbytes: int) -> None:
        told.append(nbytes)
        if len(told) == 3:
            os.kill(worker_pids()[0], signal.SIGKILL)

    remote = RemoteModel(path="bundled", opening=OPENING, address=cluster)
    with pytest.warns(UserWarning, match="A worker was lost"):
        found = survey(remote, tmp_path / "p.db", material, context=128, progress=kill)
    assert (found.files, found.finished, found.interrupted) == (5, 5, False)
    assert recorded(tmp_path / "p.db") == recorded(here)
    until = time.monotonic() + 60
    while worker_pids():  # they are killed, and Ray does not wait for their end
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_was_stopped_on_a_cluster_goes_on_here(
    cluster: str, material: list[Material], here: Path, tmp_path: Path
) -> None:
    told: list[int] = []
    remote = RemoteModel(path="bundled", opening=OPENING, address=cluster)
    stopped = survey(
        remote,
        tmp_path / "p.db",
        material,
        context=128,
        segment_tokens=1,
        progress=told.append,
        should_stop=lambda: len(told) >= 5,
    )
    assert stopped.interrupted
    rest = survey_here(material, tmp_path / "p.db", segment_tokens=1)
    assert (rest.run, rest.finished, rest.interrupted) == (stopped.run, 5, False)
    with ProfileDatabase(here) as whole, ProfileDatabase(tmp_path / "p.db") as mine:
        assert whole.state()[1] == mine.state()[1]


def test_a_budget_that_is_too_small_is_said_in_the_models_words(
    cluster: str, material: list[Material], tmp_path: Path
) -> None:
    remote = RemoteModel(path="bundled", opening=Opening(memory="300MiB", threads=1), address=cluster)
    with pytest.raises(ClusterError, match=r"cannot open the model: A memory budget of 300\.00 MiB is too small"):
        survey(remote, tmp_path / "p.db", material)
    assert not (tmp_path / "p.db").exists()


def test_ctrl_c_stops_the_command_and_its_workers(material: list[Material], tmp_path: Path) -> None:
    """As a terminal does it: every process of the command gets the signal."""
    command = [sys.executable, "-m", "coterie", "profile", "record", "bundled", "-o", str(tmp_path / "p.db")]
    command += ["--text", f"one={material[0].path}", "--context", "4", "--segment-tokens", "1", "--json"]
    command += ["--memory", "1GiB", "--threads", "1", "--ray", "local"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        until = time.monotonic() + 180
        while not tokens_in(tmp_path / "p.db"):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert json.loads(out)["interrupted"]
    assert tokens_in(tmp_path / "p.db") > 0


def tokens_in(path: Path) -> int:
    if not path.exists():
        return 0
    with ProfileDatabase(path, create=True) as database:
        return database.state()[1]

import subprocess
import sys

import pytest

from coterie.native import WAITING_SETTINGS, Crowd, turns_for_long, waiting, waiting_words
from coterie.native import openmp as module


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in WAITING_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value", "long"),
    [
        ("OMP_WAIT_POLICY", "passive", False),
        ("OMP_WAIT_POLICY", "ACTIVE", True),
        ("GOMP_SPINCOUNT", "1000", False),
        ("GOMP_SPINCOUNT", "300000", True),
        ("GOMP_SPINCOUNT", "infinite", True),
    ],
)
def test_what_the_user_says_is_respected(unset: pytest.MonkeyPatch, name: str, value: str, long: bool) -> None:
    unset.setenv(name, value)
    unset.setattr(module, "_is_gnu", lambda: True)
    assert waiting() == "stated"
    assert waiting_words() == f"as {name}={value} says"
    assert turns_for_long() is long


def test_gnus_runtime_adapts_and_another_one_is_not_known(unset: pytest.MonkeyPatch) -> None:
    unset.setattr(module, "_is_gnu", lambda: True)
    assert waiting() == "adaptive"
    assert not turns_for_long()
    unset.setattr(module, "_is_gnu", lambda: False)
    assert waiting() == "unknown"
    assert turns_for_long()
    assert "not GNU's" in waiting_words()


def test_without_gnus_runtime_no_crowd_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_gnu", lambda: False)
    crowd = Crowd()
    crowd.gather()
    assert not crowd.stands
    crowd.scatter()


@pytest.mark.skipif(not module._is_gnu(), reason="torch computes with another OpenMP runtime")
def test_a_crowd_has_more_threads_than_processors_and_leaves_none() -> None:
    # In a process of its own: other tests' threads come and go.
    script = (
        "import os, time, torch\n"
        "from coterie.native import Crowd\n"
        "torch.set_num_threads(2); a = torch.ones(2048, 2048); b = a + a\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "before, crowd = count(), Crowd()\n"
        "for _ in range(3):\n"
        "    crowd.gather(); crowd.gather(); stood = count(); assert crowd.stands\n"
        "    assert stood - before > os.cpu_count(), (before, stood)\n"
        "    assert torch.equal(a + a, b)\n"
        "    crowd.scatter(); crowd.scatter(); assert not crowd.stands\n"
        "for _ in range(400):\n"
        "    if count() <= before: break\n"
        "    time.sleep(0.05)  # the last threads are still on their way out\n"
        "print(count() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 0

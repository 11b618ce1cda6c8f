import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coterie.plan.busyness import ProcessorTimes, cores_of_others, load_average, processor_times


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with four processors, of which this process may use two, and a hundred ticks a second."""
    (tmp_path / "proc").mkdir()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    return tmp_path


def write(machine: Path, *lines: str) -> None:
    (machine / "proc/stat").write_text("\n".join(lines) + "\n")


def test_only_processors_that_may_be_used_count_and_guests_only_once(machine: Path) -> None:
    # user nice system idle iowait irq softirq steal guest guest_nice
    write(
        machine,
        "cpu  9 9 9 9 9 9 9 9 9 9",
        "cpu0 100 10 20 5000 700 1 2 3 50 5",
        "cpu1 9000 0 0 0 0 0 0 0 0 0",
        "cpu2 200 0 0 1 1 0 0 0 0 0",
        "intr 12345 0 0",
        "ctxt 99",
    )
    found = processor_times(root=machine)
    assert found is not None
    assert found.busy_s == pytest.approx((100 + 10 + 20 + 1 + 2 + 3 + 200) / 100)
    assert found.own_s == pytest.approx(time.process_time(), abs=1)


@pytest.mark.parametrize("lines", [(), ("cpu 1 2 3",), ("cpu0 0 0 0 0 0 0 0 0 0 0", "cpu2 0 0 0 0"), ("cpu0", "cpu2")])
def test_what_tells_nothing_is_no_measurement(machine: Path, lines: tuple[str, ...]) -> None:
    write(machine, *lines)
    assert processor_times(root=machine) is None


def test_a_machine_without_the_file(tmp_path: Path) -> None:
    assert processor_times(root=tmp_path) is None


def times(at_s: float, busy_s: float, own_s: float) -> ProcessorTimes:
    return ProcessorTimes(at_s=at_s, busy_s=busy_s, own_s=own_s)


def test_what_this_process_did_is_taken_off() -> None:
    assert cores_of_others(times(0, 0, 0), times(2, 5, 3)) == pytest.approx(1.0)
    # The kernel's two counters do not run in step.
    assert cores_of_others(times(0, 0, 0), times(2, 2.9, 3)) == 0.0
    assert cores_of_others(times(0, 0, 0), times(0.01, 1, 0)) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_busy_child_is_seen() -> None:
    work = "import time\nwhile time.process_time() < 0.4: pass"
    before = processor_times()
    subprocess.run([sys.executable, "-c", work], check=True)
    after = processor_times()
    if before is None or after is None:
        pytest.skip("this kernel does not tell")
    # A kernel may count by looking a hundred times a second who is at work: half is seen in any case.
    assert after.busy_s - before.busy_s > 0.2
    others = cores_of_others(before, after)
    assert others is not None
    assert others > 0


def test_the_load_average_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 2.5, 3.5))
    assert load_average() == 1.5

    def refuse() -> None:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", refuse)
    assert load_average() is None
    monkeypatch.delattr(os, "getloadavg")
    assert load_average() is None

"""Scripts within limits, in processes of their own: begun for each request, or forks of one that stands ready."""

import os
import threading
import time
from pathlib import Path

import pytest

from coterie.hf import limited
from coterie.hf.limited import TooLong, kept_ready, run_limited_often

SCRIPT = """
import os, sys, time
def prepare(): pass
def answer(request):
    word = request.decode()
    if word == "descriptors":
        return " ".join(sorted(os.listdir("/proc/self/fd"), key=int)).encode()
    if word == "memory":
        return b"%d" % len(bytearray(2**32))
    if word == "turns":
        while True: pass
    if word == "sleeps":
        time.sleep(60)
    if word == "ends":
        os.abort()
    if word == f"kills {os.getppid()}":
        os.kill(os.getppid(), 9)
    return b"%d %d" % (os.getpid(), os.getppid())
if __name__ == "__main__":
    written = answer(sys.stdin.buffer.read())
    sys.stdout.buffer.write(written)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def run(script: Path, word: str, wall_seconds: float = 30.0) -> str:
    return run_limited_often(
        script, word.encode(), (), memory=2**29, seconds=1, wall_seconds=wall_seconds
    ).decode()  # fmt: skip


def test_each_request_has_a_process_of_its_own_and_the_one_that_stands_ready_ends_with_its_keepers(
    script: Path,
) -> None:
    with kept_ready():
        with kept_ready():
            pids, parents = zip(*(run(script, "").split() for _ in range(3)), strict=True)
        assert len(set(pids)) == 3
        assert len(set(parents)) == 1
        assert run(script, "").split()[1] == parents[0]
    assert int(parents[0]) != os.getpid()
    assert not Path(f"/proc/{parents[0]}").exists()
    assert run(script, "").split()[1] == str(os.getpid())


def test_limits_hold(script: Path) -> None:
    with kept_ready():
        for word in ("memory", "ends"):
            assert run(script, word) == ""
        with pytest.raises(TooLong):
            run(script, "turns")
        began = time.monotonic()
        with pytest.raises(TooLong):
            run(script, "sleeps", wall_seconds=1.0)
        assert time.monotonic() - began < 30
        # Whoever comes next is answered as if nothing had been.
        assert run(script, "")


def test_what_others_ask_is_out_of_reach(script: Path) -> None:
    with kept_ready():
        # Standard error, what is written to, and the folder that is being listed.
        assert len(run(script, "descriptors").split()) == 3


def test_one_that_is_lost_is_replaced(script: Path) -> None:
    with kept_ready():
        before = run(script, "").split()[1]
        assert run(script, f"kills {before}")
        after = run(script, "").split()[1]
        assert after not in (before, str(os.getpid()))


def test_several_at_once_do_not_wait_for_each_other(script: Path) -> None:
    found: list[str] = []
    with kept_ready():
        parent = run(script, "").split()[1]
        busy = limited._kept[script]
        assert busy._asking.acquire(timeout=10)
        try:
            thread = threading.Thread(target=lambda: found.append(run(script, "")))
            thread.start()
            thread.join(30)
        finally:
            busy._asking.release()
    assert found[0].split()[1] == str(os.getpid()) != parent

import os
import subprocess
import sys

import pytest

from coterie.plan.heap import ARENAS, HUGE_PAGES, KEPT, LARGE, ask_for_huge_pages, settle_heap

THREADS = """
import ctypes, sys, threading
from coterie.plan.heap import settle_heap
settle_heap()
allocate = ctypes.CDLL(None).malloc
allocate.restype, allocate.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
taken = []
threads = [threading.Thread(target=lambda: taken.append(allocate(1000))) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
heap = [line.split()[0] for line in open("/proc/self/maps") if line.endswith("[heap]\\n")]
start, end = (int(text, 16) for text in heap[0].split("-"))
print(all(start <= address < end for address in taken))
"""


LAYERS = """
from coterie.plan.heap import settle_heap
import torch
if {settled}:
    settle_heap()
def activations():
    return [torch.ones(nbytes, dtype=torch.uint8) for nbytes in (30 << 20, 5 << 20, 9 << 20, 20 << 20)]
activations()
kept = []
for layer in range(12):
    passing = activations()
    kept.append(torch.ones((2 << 20) + 1000 * layer, dtype=torch.uint8))
    del passing
print(sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


@pytest.mark.parametrize("name", [ARENAS, LARGE, KEPT])
def test_what_the_user_says_is_respected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "4")
    assert settle_heap() is False


def test_large_pages_are_asked_for_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HUGE_PAGES, "0")
    ask_for_huge_pages()
    assert os.environ[HUGE_PAGES] == "0"
    monkeypatch.delenv(HUGE_PAGES)
    ask_for_huge_pages()
    assert os.environ[HUGE_PAGES] == "1"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_what_is_kept_between_activations_leaves_no_gaps() -> None:
    held = []
    for settled in (False, True):
        code = LAYERS.format(settled=settled)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        held.append(int(done.stdout))
    # Activations of 64 MiB are gone, and 24 MiB are kept.
    assert held[0] - held[1] > 30 << 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_threads_use_the_heap_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"

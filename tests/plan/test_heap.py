import subprocess
import sys

import pytest

from coterie.plan import heap
from coterie.plan.heap import ARENAS, KEPT, LARGE, settle_heap

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
from coterie.plan.heap import keep_off_heap, settle_heap
import torch
settle_heap()
for large in {told}:
    keep_off_heap(large)
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


def test_how_many_heaps_the_user_says_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ARENAS, "4")
    assert settle_heap() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_what_is_kept_between_activations_leaves_no_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    def held(*told: bool) -> int:
        code = LAYERS.format(told=told)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    few = held(True)
    # Activations of 64 MiB are gone, and 24 MiB are kept.
    assert min(held(), held(False), held(True, False)) - few > 30 << 10


@pytest.mark.parametrize("name", [LARGE, KEPT])
def test_what_the_user_says_is_taken_beside_the_heap_is_respected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(heap, "_set", lambda *said: told.append(said) or True)
    monkeypatch.setattr(heap._State, "settled", True)
    monkeypatch.setattr(heap._State, "beside", None)
    monkeypatch.setenv(name, "4194304")
    heap.keep_off_heap(True)
    assert told == []
    monkeypatch.delenv(name)
    for large in (False, True, True, False):
        heap.keep_off_heap(large)
    assert [value for parameter, value in told if parameter == -3] == [1 << 20, 32 << 20]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_threads_use_the_heap_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"

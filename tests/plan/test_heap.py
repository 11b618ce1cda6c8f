import subprocess
import sys

import pytest

from coterie.plan.heap import VARIABLE, share_one_heap

THREADS = """
import ctypes, sys, threading
from coterie.plan.heap import share_one_heap
share_one_heap()
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


def test_what_the_user_says_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "4")
    assert share_one_heap() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_threads_use_the_heap_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"

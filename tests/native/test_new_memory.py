"""Memory is found by a thread that only runs while a processor is idle."""

import mmap
import os
import sys

import pytest

from coterie.native import library, touch_when_idle

PAGE = 4096


@pytest.fixture
def native():
    found = library()
    if found is None:
        pytest.skip("the native library is not built")
    return found


def test_every_page_has_memory_afterwards_and_nothing_else_is_written(native):
    memory = bytearray(b"x" * (8 * PAGE + 10))
    with memoryview(memory) as view:
        seconds = touch_when_idle(native, view[PAGE : 7 * PAGE + 10])
    assert seconds > 0
    touched = [place for place, byte in enumerate(memory) if byte == 0]
    assert touched == [number * PAGE for number in range(1, 8)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_new_memory_becomes_resident(native):
    nbytes = 64 * 2**20
    with mmap.mmap(-1, nbytes) as memory:
        before = resident_nbytes()
        with memoryview(memory) as view:
            touch_when_idle(native, view)
        assert resident_nbytes() - before > 0.9 * nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's scheduling classes")
def test_the_caller_keeps_its_priority(native):
    before = os.sched_getscheduler(0)
    touch_when_idle(native, memoryview(bytearray(PAGE)))
    assert os.sched_getscheduler(0) == before


def resident_nbytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE

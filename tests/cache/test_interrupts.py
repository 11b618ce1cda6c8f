"""Ctrl-C at any point stays KeyboardInterrupt, holds nothing, and what comes after it is right."""

import _thread
import itertools
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import coterie.cache
from coterie.cache import ExpertCache
from coterie.cache.claims import Waiters

from .sources import SMALL, TinySource, assert_consistent, assert_is, keys_of, leased

FOLDER = str(Path(coterie.cache.__file__).parent)
KEYS = keys_of(12)


class Injected:
    """Raises KeyboardInterrupt at the n-th point at which Python runs a signal's handler in the cache's modules.

    These are the beginnings of functions and the ends of calls, with all that was called done and its result lost.
    """

    def __init__(self, number):
        self._left = number
        self.happened = False

    def __enter__(self):
        sys.setprofile(self._event)
        return self

    def __exit__(self, *exception):
        sys.setprofile(None)

    def _event(self, frame, event, argument):
        if event == "c_call" or not frame.f_code.co_filename.startswith(FOLDER):
            return
        self._left -= 1
        if self._left == 0:
            self.happened = True
            raise KeyboardInterrupt


def drain(cache, keys, phase="decode"):
    with leased(cache, keys, phase=phase) as lease:
        for key, tensors in lease:
            assert_is(key, SMALL, tensors)


def is_usable(cache):
    """From another thread, too: a lock that is still held would stop it."""
    problems = []

    def run():
        try:
            drain(cache, KEYS)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "a lock is still held"
    assert not problems, problems


# One that comes while a lease or a generator is collected is told of and lost, in Python itself.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_at_every_point(tmp_path, phase):
    source = TinySource.uniform(tmp_path, 12)
    with ExpertCache(source, capacity=6 * SMALL.nbytes, read_threads=2) as cache:
        for number in itertools.count(1):
            try:
                with Injected(number) as injected:
                    drain(cache, KEYS[:5], phase)
            except KeyboardInterrupt:
                assert injected.happened
            if not injected.happened:
                break
            is_usable(cache)
            assert_consistent(cache)
        assert number > 100


@pytest.fixture
def _ctrl_c():
    """What a shell runs in the background begins with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_by_real_signals_while_it_waits(tmp_path):
    """Each read takes a moment, in which the main thread waits; the signal comes when it likes."""
    source = TinySource.uniform(tmp_path, 12, before_read=lambda key: time.sleep(0.0005))
    draw = random.Random(1)
    interrupted = 0
    with ExpertCache(source, capacity=4 * SMALL.nbytes, read_threads=2) as cache:
        for _ in range(150):
            delay = draw.random() * 0.008
            timer = threading.Timer(delay, _thread.interrupt_main)
            try:
                timer.start()
                drain(cache, KEYS)
                timer.join()
                time.sleep(0.001)
            except KeyboardInterrupt:
                interrupted += 1
            is_usable(cache)
        assert_consistent(cache)
    assert interrupted > 100


def test_a_waiter_that_was_interrupted_does_not_keep_others_waiting():
    waiters, lock, passed = Waiters(), threading.Lock(), []
    with lock:
        waiters.join()  # of somebody who has gone

    def wait():
        with lock:
            bar = waiters.join()
        waiters.wait(bar)
        passed.append(True)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    while not passed and thread.is_alive():
        with lock:
            waiters.wake_all()
        time.sleep(0.001)
    thread.join(60)
    assert passed == [True]

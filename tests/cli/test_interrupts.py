import os
import signal
import threading
from collections.abc import Iterator

import pytest

from coterie.cli.interrupts import ctrl_c_requests_stop


@pytest.fixture(autouse=True)
def _as_at_a_terminal() -> Iterator[None]:
    """A process that was started in the background ignores SIGINT, and so would the tests in it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_press_asks_and_the_second_interrupts() -> None:
    with ctrl_c_requests_stop() as pressed:
        assert not pressed()
        press()
        assert pressed()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_afterwards_it_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ctrl_c_requests_stop():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_may_use_it_without_effect() -> None:
    seen: list[bool] = []

    def work() -> None:
        with ctrl_c_requests_stop() as pressed:
            seen.append(pressed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]

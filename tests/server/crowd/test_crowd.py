"""A server among many who mean well, many who leave, and many who mean no good: no lost, mixed or hanging answer.

``COTERIE_LOAD_REQUESTS`` and ``COTERIE_LOAD_SECONDS`` say how many requests, and how long at most.
"""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from server.conftest import until
from server.crowd.client import Client
from server.crowd.crowd import Watch, crowd, idle, learn
from server.crowd.mix import mix
from server.crowd.slow import LONGEST_S, SlowOnes
from server.process import Process, Taken

REQUESTS = int(os.environ.get("COTERIE_LOAD_REQUESTS", "10000"))
SECONDS = float(os.environ.get("COTERIE_LOAD_SECONDS", "1800"))
_SLOW = 200
_MORE_NBYTES = 24 << 20
"""What memory may have grown by between the first and the last quarter: an allocator has its ups and downs. Of 10,000
requests, 3 KiB each that were kept would be more."""


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 900)
def test_a_crowd_is_answered_and_leaves_nothing(start: Callable[..., Process], tmp_path: Path, capsys) -> None:
    server = start("--queue", "64")
    known = learn(server, mix())
    until(lambda: idle(server))
    before = server.taken()
    numbers, lock, end = itertools.count(), threading.Lock(), time.monotonic() + SECONDS

    def go_on(client: Client) -> bool:
        with lock:
            number = next(numbers)
        if number >= REQUESTS or time.monotonic() >= end or client.wrong:
            return False
        client.one()
        return True

    with SlowOnes(server.port, _SLOW) as slow:
        until(lambda: slow.open > _SLOW * 0.9)
        began = time.monotonic()
        with Watch(server) as watch:
            clients = crowd(server, known, go_on)
        took = time.monotonic() - began
    wrong = [one for client in clients for one in client.wrong]
    assert not wrong, "\n".join(wrong)
    until(lambda: idle(server), 60)
    until(lambda: server.taken().files <= before.files and server.taken().threads <= before.threads, 60)
    after = server.taken()
    with capsys.disabled():
        print(
            f"\n{_said(clients, took, before, after)}; slow ones closed {dict(slow.closed)}, after "
            f"{slow.longest:.0f} s at most; {watch.grown / 2**20:+.1f} MiB from the first quarter to the last"
        )
    assert set(slow.closed) == {"head", "body", "nothing", "unread"} or took < LONGEST_S
    assert slow.longest < LONGEST_S
    assert watch.grown < _MORE_NBYTES
    # Each request that the server took on had an end of which it knows.
    ends = sum(server.metric(f"coterie_{name}_total") for name in ("request_success", "request_failed", "cancelled"))
    answered = sum(client.ends["answered"] for client in clients)
    assert ends > answered / 2
    assert server.ask("/readyz")[0] == 200
    assert server.end() == 0
    assert server.out == ""
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [line for line in server.log if line["level"] not in ("info", "debug")] == []
    assert "Traceback" not in server.said


def _said(clients: list[Client], took: float, before: Taken, after: Taken) -> str:
    """What is told of a run."""
    ends = sum((client.ends for client in clients), Counter[str]())
    seconds = sorted(one for client in clients for one in client.seconds)
    return (
        f"{ends.total()} requests in {took:.0f} s, {after.seconds - before.seconds:.0f} s of processor time: "
        f"{dict(ends)}; half answered within {statistics.median(seconds):.2f} s, all within {seconds[-1]:.2f} s; "
        f"memory {before.nbytes >> 20} MiB before, {after.nbytes >> 20} MiB after"
    )

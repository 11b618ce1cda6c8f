"""Many clients at once, and a look at the server meanwhile."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Sequence

from server.crowd.client import Answer, Asked, Client
from server.process import Process, Taken

CLIENTS = 16


def learn(server: Process, asked: Sequence[Asked]) -> dict[Asked, Answer]:
    """What each request is answered when nobody else asks; twice, so that it is known to be the same each time."""
    client = Client(server.port, {}, seed=0)
    first, second = ({one: client.ask(one, f"alone-{number}") for one in asked} for number in range(2))
    different = [one.name for one in asked if first[one] != second[one]]
    assert not different
    return first


def crowd(server: Process, known: dict[Asked, Answer], go_on: Callable[[Client], bool]) -> list[Client]:
    """Clients in threads of their own, which have ended when this returns.

    Args:
        server: Whom they ask.
        known: What is right.
        go_on: What each does, time and again, while it returns True.
    """
    clients = [Client(server.port, known, seed) for seed in range(1, CLIENTS + 1)]

    def run(client: Client) -> None:
        try:
            while go_on(client):
                pass
        except BaseException as error:
            client.wrong.append(repr(error))
            raise
        finally:
            client.close()

    threads = [threading.Thread(target=run, args=(client,), name="client") for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clients


class Watch:
    """Looks at what a server takes, time and again."""

    def __init__(self, server: Process) -> None:
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self.taken: list[Taken] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.25):
            self.taken.append(self._server.taken())

    @property
    def grown(self) -> float:
        """Bytes by which the last quarter has more than the first one, after a tenth to get warm."""
        warm = [one.nbytes for one in self.taken[len(self.taken) // 10 :]]
        quarter = max(1, len(warm) // 4)
        return statistics.median(warm[-quarter:]) - statistics.median(warm[:quarter])


def idle(server: Process) -> bool:
    """Whether nothing is asked of it any more."""
    waiting = server.metric("coterie_num_requests_running") + server.metric("coterie_num_requests_waiting")
    return waiting == 0 and b'"is_processing":true' not in server.ask("/slots")[1].replace(b" ", b"")

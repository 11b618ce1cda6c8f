"""What needs the tokenizer alone is done within the limits of requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from coterie.errors import EngineStoppedError, QueueFullError, QueueTimeoutError
from coterie.generation.asides import Asides
from coterie.generation.preparers import SHORT_NBYTES, Preparers


@pytest.fixture
def preparers() -> Iterator[Preparers]:
    made = Preparers()
    yield made
    made.close()


def made(preparers: Preparers, *, most: int = 2, longest_s: float = 30) -> Asides:
    return Asides(preparers, most=most, longest_s=longest_s, retry_after=lambda: 7)


def test_results_and_errors_are_its_callers(preparers: Preparers) -> None:
    def panics() -> None:
        raise SystemExit("as Rust libraries do")

    async def ask() -> None:
        asides = made(preparers)
        assert await asides.do(lambda: threading.current_thread().name, 5) != threading.current_thread().name
        with pytest.raises(ZeroDivisionError):
            await asides.do(lambda: 1 / 0, 5)
        with pytest.raises(RuntimeError, match="SystemExit: as Rust"):
            await asides.do(panics, 5)
        assert await asides.do(lambda: 5, 5) == 5

    asyncio.run(ask())


def test_there_is_a_limit_to_their_number_and_time(preparers: Preparers) -> None:
    released = threading.Event()

    async def ask() -> None:
        asides = made(preparers)
        first = [asyncio.create_task(asides.do(released.wait, SHORT_NBYTES)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as raised:
            await asides.do(int, 5)
        assert raised.value.retry_after == 7
        with pytest.raises(QueueTimeoutError):
            await made(preparers, longest_s=0.05).do(released.wait, SHORT_NBYTES)
        released.set()
        assert await asyncio.gather(*first) == [True, True]
        assert await asides.do(int, 5) == 0

    asyncio.run(ask())


def test_nothing_is_left_of_what_nobody_waits_for(preparers: Preparers) -> None:
    released = threading.Event()

    async def ask() -> None:
        asides = made(preparers, most=50)
        # More than there are threads.
        tasks = [asyncio.create_task(asides.do(released.wait, 5)) for _ in range(20)]
        while len(preparers) != 20 - preparers.threads:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(preparers) == 0
        released.set()

    asyncio.run(ask())


def test_what_waits_at_the_end_is_told(preparers: Preparers) -> None:
    preparers.close()

    async def ask() -> None:
        with pytest.raises(EngineStoppedError):
            await made(preparers).do(int, 5)

    asyncio.run(ask())

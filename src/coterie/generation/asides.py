"""What needs a model's tokenizer and not the model, asked for from an event loop: counting, tokens of a text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from coterie.errors import EngineStoppedError, QueueFullError, QueueTimeoutError
from coterie.generation.preparers import Preparers

Result = TypeVar("Result")
Told = TypeVar("Told")


class Asides:
    """Has such things done by the threads that make prompts ready, within the limits of requests.

    Args:
        preparers: The threads.
        most: How many may wait or be done.
        longest_s: Seconds after which one is given up.
        retry_after: Says when to ask again.
    """

    def __init__(self, preparers: Preparers, *, most: int, longest_s: float, retry_after: Callable[[], int]) -> None:
        self._preparers = preparers
        self._most = most
        self._longest_s = longest_s
        self._retry_after = retry_after
        self._going = 0

    async def do(self, work: Callable[[], Result], nbytes: int) -> Result:
        """Does it; nothing of it is left in the queue where its caller is cancelled.

        Args:
            work: What.
            nbytes: How long the text is.

        Raises:
            QueueFullError: If there is no room.
            QueueTimeoutError: If it takes too long.
            EngineStoppedError: If nothing is done any more.
        """
        if self._going >= self._most:
            raise QueueFullError(
                f"{self._going} requests wait for the tokenizer already.", advice="Ask again later.",
                retry_after=self._retry_after(),
            )  # fmt: skip
        loop = asyncio.get_running_loop()
        coming: asyncio.Future[Result] = loop.create_future()

        def run(wanted: bool) -> None:
            try:
                if not wanted:
                    raise EngineStoppedError("Nothing is done any more: the engine is shutting down.", stopping=True)
                done = work()
            except Exception as error:
                _tell(loop, coming.set_exception, coming, error)
            except BaseException as error:  # panics of Rust libraries are no Exception, and would end the loop
                _tell(loop, coming.set_exception, coming, RuntimeError(f"{type(error).__name__}: {error}"))
            else:
                _tell(loop, coming.set_result, coming, done)

        self._going += 1
        handed_in = self._preparers.submit(run, nbytes)
        try:
            async with asyncio.timeout(self._longest_s):
                return await coming
        except TimeoutError:
            raise QueueTimeoutError(
                f"The request was not done within {self._longest_s:g} s.", retry_after=self._retry_after()
            ) from None
        finally:
            self._going -= 1
            self._preparers.withdraw(handed_in)


def _tell(
    loop: asyncio.AbstractEventLoop, tell: Callable[[Told], None], coming: asyncio.Future[Any], what: Told
) -> None:
    def finish() -> None:
        if not coming.done():
            tell(what)

    with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
        loop.call_soon_threadsafe(finish)

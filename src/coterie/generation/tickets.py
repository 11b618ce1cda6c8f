"""A request on its way through an engine, as whoever made it sees it: the answer piece by piece, and how to stop it.

The engine's threads tell it things. They are read from any other thread, or from an event loop; by one reader.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from coterie.errors import RequestCancelledError

if TYPE_CHECKING:
    from coterie.generation.completion import Completion
    from coterie.generation.logprobs import TokenLogprob
    from coterie.generation.provenance import Provenance
    from coterie.generation.speech import Speech

Phase = Literal["queue", "prefill", "decode", "over"]
"""Where a request is: waiting, having its prompt read, being answered, or neither any more."""
Part = Literal["text", "reasoning"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The request is sound and waits for the model.

    Attributes:
        tokens: Length of its prompt, where that is known before its pictures and sounds are decoded.
    """

    tokens: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """Some of the prompt has been read.

    Attributes:
        read: Tokens of it.
        tokens: Its length.
        reused: Of those that were read, how many an earlier request had computed.
    """

    read: int
    tokens: int
    reused: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the answer.

    Attributes:
        part: Whether it is said, or thought before.
        text: The text; never empty.
        logprobs: How likely its tokens were, if that is wanted.
        prompt_logprobs: With the first piece, the same of the prompt's tokens.
    """

    part: Part
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class SoundChunk:
    """Some of an answer's sound.

    Attributes:
        samples: float32 [samples] in [-1, 1], one channel; never empty.
        rate: Samples per second.
        part: Tells it from text.
    """

    samples: npt.NDArray[np.float32]
    rate: int
    part: Literal["sound"] = "sound"


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is whole.

    Attributes:
        completion: The answer.
        provenance: What it took of experts, if that was asked for.
        speech: The answer with its sound, if that was asked for.
    """

    completion: Completion
    provenance: Provenance | None = None
    speech: Speech | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no (more of an) answer.

    Attributes:
        error: Why.
    """

    error: BaseException


Event = Prepared | Progress | Piece | SoundChunk | Done | Failed


class Ticket:
    """One request. Made by :meth:`~coterie.generation.engine.Engine.submit`.

    Iterating over it gives the pieces of the answer as they come, with ``for`` or with ``async for``: each a
    :class:`Piece`, or of an answer that is spoken a :class:`SoundChunk`. :meth:`result` waits for the whole answer, and
    so does ``await``. Leaving it as a context gives it up if it is not over.

    Args:
        name: What the request is called.
        cancel: Gives it up.

    Attributes:
        name: What the request is called.
        phase: Where it is.
        submitted: When it came, on :func:`time.monotonic`.
        begun: When the model began with it; None before.
        prompt_tokens: Length of its prompt, once it is known.
        read_tokens: Tokens of its prompt that have been read.
    """

    def __init__(self, name: str, cancel: Callable[[Ticket], None]) -> None:
        self.name = name
        self.phase: Phase = "queue"
        self.submitted = time.monotonic()
        self.begun: float | None = None
        self.prompt_tokens: int | None = None
        self.read_tokens = 0
        self._cancel = cancel
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._end: Done | Failed | None = None
        self._awaited: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def queue_s(self) -> float:
        """Seconds that it waited, so far or until the model began."""
        return (time.monotonic() if self.begun is None else self.begun) - self.submitted

    @property
    def provenance(self) -> Provenance | None:
        """What its answer took of experts, once it is whole and if that was asked for."""
        return self._end.provenance if isinstance(self._end, Done) else None

    @property
    def speech(self) -> Speech | None:
        """The answer with its sound, once it is whole and if that was asked for."""
        return self._end.speech if isinstance(self._end, Done) else None

    def cancel(self) -> None:
        """Gives it up: it leaves the queue, or ends before the next layer is computed. Harmless if it is over."""
        self._cancel(self)

    def result(self, timeout: float | None = None) -> Completion:
        """The answer, once it is whole.

        Args:
            timeout: Seconds to wait for it; None for as long as it takes.

        Raises:
            TimeoutError: If it takes longer. The request goes on.
            RequestCancelledError: If it was given up.
            CoterieError: Why there is none.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._end is not None, timeout):
                raise TimeoutError(f"The request is not over after {timeout:g} s.")
        return self._completion()

    def event(self, timeout: float | None = None) -> Event | None:
        """What comes next of it; None if nothing does in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._events, timeout)
            return self._events.popleft() if self._events else None

    async def next(self) -> Event:
        """What comes next of it."""
        while True:
            with self._changed:
                if self._events:
                    return self._events.popleft()
                coming = self._wakened()
            await coming

    async def first(self, seconds: float) -> Event | None:
        """What comes next of it, if something does soon."""
        try:
            return await asyncio.wait_for(self.next(), seconds)
        except TimeoutError:
            return None

    def __iter__(self) -> Iterator[Piece | SoundChunk]:
        while True:
            event = self.event()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                return
            if isinstance(event, Piece | SoundChunk):
                yield event

    async def __aiter__(self) -> AsyncIterator[Piece | SoundChunk]:
        while True:
            event = await self.next()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                return
            if isinstance(event, Piece | SoundChunk):
                yield event

    def __await__(self) -> Generator[Any, None, Completion]:
        while True:
            with self._changed:
                if self._end is not None:
                    break
                coming = self._wakened()
            yield from coming.__await__()
        return self._completion()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def tell(self, event: Event) -> None:
        """Passes an event on; for engines. Nothing comes after the end."""
        with self._changed:
            if self._end is not None:
                return
            if isinstance(event, Prepared) and event.tokens is not None:
                self.prompt_tokens = event.tokens
            elif isinstance(event, Progress):
                self.read_tokens = event.read
            elif isinstance(event, Done | Failed):
                self.phase = "over"
                self._end = event
            self._events.append(event)
            self._changed.notify_all()
            awaited, self._awaited = self._awaited, []
        for loop, coming in awaited:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(_finish, coming)

    def tell_cancelled(self) -> None:
        """Passes on that it was given up; for engines."""
        self.tell(Failed(RequestCancelledError("The request was given up.")))

    def _wakened(self) -> asyncio.Future[None]:
        """Is done when something comes; the lock is held."""
        loop = asyncio.get_running_loop()
        coming = loop.create_future()
        self._awaited = [(where, one) for where, one in self._awaited if not one.done()]
        self._awaited.append((loop, coming))
        return coming

    def _completion(self) -> Completion:
        if isinstance(self._end, Done):
            return self._end.completion
        assert self._end is not None
        raise self._end.error


def _finish(coming: asyncio.Future[None]) -> None:
    if not coming.done():
        coming.set_result(None)

"""A request on its way through the engine: what has become of it, told from the model's thread to the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from coterie.engine.statistics import BankStats
    from coterie.generation.answers import AnswerReader
    from coterie.generation.completion import Completion
    from coterie.generation.logprobs import TokenLogprob
    from coterie.generation.sampling import Sampling
    from coterie.generation.tool_calls import CallText

Phase = Literal["queue", "prefill", "decode", "over"]
"""Where a request is: waiting, having its prompt read, being answered, or neither any more."""
Part = Literal["text", "reasoning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model is to continue, made ready as far as it can be while the model works for others.

    Attributes:
        inputs: Makes the model's inputs; decodes pictures and sounds, for which there is room when nothing else runs.
        tokens: Its length, where it is known before.
        reader: Tells the parts of the answer apart, where it has parts.
        calls: Takes the calls of tools out of the text, where there are tools.
        sampling: How tokens are chosen, where the prompt has to do with it; None as it was asked.
    """

    inputs: Callable[[], Any]
    tokens: int | None
    reader: AnswerReader | None = None
    calls: CallText | None = None
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of the engine.

    Attributes:
        prepare: Makes the prompt, in a thread of its own.
        sampling: How tokens are chosen.
        provenance: Whether it is told what experts were read for it.
    """

    prepare: Callable[[], Prompt]
    sampling: Sampling
    provenance: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """The request is sound and waits for the model."""

    tokens: int | None


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the answer.

    Attributes:
        part: Which part of it.
        text: The piece.
        logprobs: How likely its tokens were, if that is wanted.
        prompt_logprobs: With the first piece, the same of the prompt's tokens.
    """

    part: Part
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What an answer took of experts. As the model serves nobody else meanwhile, it is this answer's alone.

    Attributes:
        experts_requested: Experts that layers asked for.
        experts_read: Of these, read from disk.
        hit_rate: Share of them that was in memory.
        bytes_read: Bytes read for them.
        read_wait_s: Seconds that the model waited for that.
        experts_absent: Choices of experts that the store does not have.
    """

    experts_requested: int
    experts_read: int
    hit_rate: float
    bytes_read: int
    read_wait_s: float
    experts_absent: int

    @classmethod
    def between(cls, before: BankStats, after: BankStats) -> Provenance:
        """What was counted from one time to another."""
        requested, hits = after.requested - before.requested, after.hits - before.hits
        return cls(
            experts_requested=requested,
            experts_read=after.misses - before.misses,
            hit_rate=round(hits / requested, 4) if requested else 0.0,
            bytes_read=after.bytes_read - before.bytes_read,
            read_wait_s=round(after.wait_s - before.wait_s, 6),
            experts_absent=after.absent - before.absent,
        )


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is whole."""

    completion: Completion
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no (more of an) answer."""

    error: BaseException


Event = Prepared | Piece | Done | Failed


class Ticket:
    """One request. Belongs to the event loop; the model's thread tells it things.

    Args:
        wish: What is wanted.
        request_id: What the request is called in answers and logs.

    Attributes:
        wish: What is wanted.
        request_id: What the request is called.
        phase: Where it is.
        submitted: When it came, on :func:`time.monotonic`.
        begun: When the model began with it; None before.
        prompt: What it became, once it is prepared.
        cancelled: Whether nobody waits for the answer any more.
        prompt_tokens: Its length, once it is known.
    """

    def __init__(self, wish: Wish, request_id: str) -> None:
        self.wish = wish
        self.request_id = request_id
        self.phase: Phase = "queue"
        self.submitted = time.monotonic()
        self.begun: float | None = None
        self.prompt: Prompt | None = None
        self.prompt_tokens: int | None = None
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._timer = self._loop.call_later(0, _nothing)

    @property
    def queue_s(self) -> float:
        """Seconds that it waited, so far or until the model began."""
        return (time.monotonic() if self.begun is None else self.begun) - self.submitted

    def tell(self, event: Event) -> None:
        """Passes an event on, from whatever thread."""
        if isinstance(event, Prepared) and event.tokens is not None:
            self.prompt_tokens = event.tokens
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def expire_after(self, seconds: float, expire: Callable[[Ticket], None]) -> None:
        """Has something done with it if it still waits then."""
        self._timer = self._loop.call_later(seconds, expire, self)

    def settle(self) -> None:
        """It waits no longer: nothing keeps it for the sake of that, nor what it consists of."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._timer.cancel)

    async def next(self) -> Event:
        """The next event."""
        return await self._events.get()

    async def first(self, seconds: float) -> Event | None:
        """The next event, if there is one soon."""
        try:
            return await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None


def _nothing() -> None:
    """What a ticket does that nobody waits for."""

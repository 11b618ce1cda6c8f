"""The answers to one request: to one prompt or several, one or several to each.

Each answer is a request to the engine. A few of them are with it at a time, so that a request for many neither fills
the queue nor loses its turn where others fill it meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from coterie.errors import QueueFullError
from coterie.generation.tickets import Done, Event, Failed, Ticket
from coterie.server.wishes import Wish

if TYPE_CHECKING:
    from coterie.generation.engine import Engine

AT_ONCE = 8
"""Answers that are with the engine at a time."""
_PATIENCE_S = 0.1
"""Seconds until another try, where the queue is full of others' requests."""

Numbered = tuple[int, Event]
"""What became of an answer, and which of them it is."""


class Choices:
    """The answers to one request. Belongs to the event loop.

    Args:
        engine: Makes them.
        wishes: What is wanted of each.
        request_id: What the request is called.
        at_once: Answers that are with the engine at a time.
        salt: Whose it is, as the engine takes it.
        nbytes: How long it was.

    Raises:
        EngineError: If there is no room for the first of them.

    Attributes:
        request_id: What the request is called.
        done: The answers that are whole, by number.
    """

    def __init__(
        self,
        engine: Engine,
        wishes: Sequence[Wish],
        request_id: str,
        *,
        at_once: int = AT_ONCE,
        salt: str = "",
        nbytes: int | None = None,
    ) -> None:
        self.request_id = request_id
        self.done: dict[int, Done] = {}
        self._engine = engine
        self._at_once = at_once
        self._salt = salt
        self._nbytes = nbytes
        self._wishes = tuple(wishes)
        self._tickets: list[Ticket] = []
        self._told: asyncio.Queue[Numbered] = asyncio.Queue()
        self._pumps: set[asyncio.Task[None]] = set()
        self._take_on()
        # From now on the answer is promised: a server that is to end waits for all of it.
        engine.undertaken.add(self)

    @property
    def count(self) -> int:
        """How many there are going to be."""
        return len(self._wishes)

    @property
    def tickets(self) -> Sequence[Ticket]:
        """Those that the engine has taken on, by number."""
        return self._tickets

    @property
    def first(self) -> Ticket:
        """The first of them, which says how the request fares."""
        return self._tickets[0]

    @property
    def prompt_tokens(self) -> int | None:
        """Length of the first prompt, once it is known."""
        return self.first.prompt_tokens

    async def soon(self, seconds: float) -> Numbered | None:
        """The first event, if there is one soon; it is not told again."""
        with suppress(TimeoutError):
            return await asyncio.wait_for(self._told.get(), seconds)
        return None

    async def events(self, first: Numbered | None = None) -> AsyncGenerator[Numbered]:
        """What becomes of them, to the end of all, or of the first that fails.

        Args:
            first: What :meth:`soon` has told.
        """
        if first is not None:
            yield first
            if self._over(*first):
                return
        while True:
            self._submit_more()
            waits = len(self._tickets) < len(self._wishes) and self._going < self._at_once
            try:
                number, event = await asyncio.wait_for(self._told.get(), _PATIENCE_S if waits else None)
            except TimeoutError:
                continue
            over = self._over(number, event)
            yield number, event
            if over:
                return

    def cancel(self) -> None:
        """Gives up those that are not whole. Harmless where all are; it is for the end in any case."""
        self._engine.undertaken.discard(self)
        for pump in self._pumps:
            pump.cancel()
        for ticket in self._tickets:
            self._engine.cancel(ticket)

    @property
    def _going(self) -> int:
        return len(self._tickets) - len(self.done)

    def _over(self, number: int, event: Event) -> bool:
        if isinstance(event, Done):
            self.done[number] = event
        return isinstance(event, Failed) or len(self.done) == len(self._wishes)

    def _submit_more(self) -> None:
        while len(self._tickets) < len(self._wishes) and self._going < self._at_once:
            try:
                self._take_on()
            except QueueFullError:
                return
            except Exception as error:  # the first ones are under way: what is told of it comes after them
                self._told.put_nowait((len(self._tickets), Failed(error)))
                return

    def _take_on(self) -> None:
        """Has the engine take on the next one."""
        number = len(self._tickets)
        wish = self._wishes[number]
        ticket = self._engine.submit(
            wish.prepare, wish.sampling, provenance=wish.provenance, name=self.request_id, salt=self._salt,
            nbytes=self._nbytes, repeated=wish.repeated, domain=wish.domain, voice=wish.voice, whose=self,
        )  # fmt: skip
        self._tickets.append(ticket)
        pump = asyncio.ensure_future(self._follow(number, ticket))
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)

    async def _follow(self, number: int, ticket: Ticket) -> None:
        event: Event | None = None
        while not isinstance(event, Done | Failed):
            event = await ticket.next()
            await self._told.put((number, event))

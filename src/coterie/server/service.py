"""What the routes have in common: the engine, who is asked, and how an answer gets to its client."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request

from coterie.generation.engine import Engine
from coterie.generation.tickets import Done, Event, Failed, Ticket
from coterie.server.bodies import Bodies
from coterie.server.identity import current
from coterie.server.meters import Meters
from coterie.server.prompts import Prompts
from coterie.server.refusals import Refusal
from coterie.server.streams import PING_S, EventStream, unless_gone
from coterie.server.wishes import Wish

if TYPE_CHECKING:
    from coterie.generation.completion import Completion

HEADERS_WITHIN_S = 0.05
"""A stream begins so soon, if it is not known by then that the request is none."""

UNTRAINED_TOKENS = 256
"""New tokens of an answer of a model that has no chat template, if the request does not say."""

Events = Callable[[AsyncGenerator[Event], Ticket], AsyncGenerator[bytes]]
"""Writes what becomes of a request as server-sent events."""


class Service:
    """One model that is served.

    Args:
        engine: Runs it.
        meters: What is counted.
        names: What requests may call it; the first is its name in answers.
        bodies: Reads requests.
        ping_s: Seconds of silence in a stream before something is sent.

    Attributes:
        engine: Runs the model.
        meters: What is counted.
        prompts: Makes its prompts.
        bodies: Reads requests.
        name: What the model is called in answers.
        names: What requests may call it.
        created: When the server began, in seconds since 1970.
        fingerprint: Changes with the model, its store or its scheme.
    """

    def __init__(
        self, engine: Engine, meters: Meters, names: Sequence[str], bodies: Bodies, *, ping_s: float = PING_S
    ) -> None:
        self.engine = engine
        self.meters = meters
        self.prompts = Prompts(engine.opened)
        self.bodies = bodies
        self.name = names[0]
        self.names = tuple(names)
        self.created = int(time.time())
        self.fingerprint = "fp_" + sha256(engine.opened.runtime.source.identity.encode()).hexdigest()[:12]
        self._ping_s = ping_s

    def check_model(self, name: str | None) -> None:
        """Refuses requests that are for another model."""
        if name is not None and name not in self.names:
            raise Refusal(
                404, f"There is no model {name!r} here; there is {', '.join(map(repr, self.names))}.",
                param="model", code="model_not_found",
            )  # fmt: skip

    def most(self, wanted: int | None) -> int | None:
        """New tokens of an answer: a model that was not trained to answer does not end by itself."""
        return wanted if wanted is not None or self.prompts.can_chat else UNTRAINED_TOKENS

    async def whole(self, request: Request, wish: Wish) -> Done:
        """The answer, once it is whole.

        Raises:
            Refusal: If there is none.
            ClientDisconnect: If nobody waits for it any more.
        """
        ticket = self._submit(wish, request)
        done: list[Done] = []

        async def wait() -> None:
            while not done:
                match await ticket.next():
                    case Done() as one:
                        done.append(one)
                    case Failed(error):
                        raise error
                    case _:
                        pass

        try:
            await unless_gone(request.receive, wait())
        finally:
            self._leave(request, ticket, done[0].completion if done else None)
        if not done:
            raise ClientDisconnect
        return done[0]

    async def stream(self, request: Request, wish: Wish, events: Events, *, ping: bytes) -> EventStream:
        """The answer as it comes.

        Raises:
            Refusal: If it is known soon that there is none; later it is told within the stream.
        """
        ticket = self._submit(wish, request)
        done: list[Completion] = []

        def leave() -> None:
            self._leave(request, ticket, done[0] if done else None)

        try:
            first = await ticket.first(HEADERS_WITHIN_S)
            if isinstance(first, Failed):
                raise first.error
        except BaseException:
            leave()
            raise
        return EventStream(events(_followed(ticket, first, done), ticket), ping=ping, ping_s=self._ping_s, close=leave)

    def _submit(self, wish: Wish, request: Request) -> Ticket:
        """Has the engine take a request on."""
        sampling = wish.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=current().seed)
        return self.engine.submit(
            wish.prepare,
            sampling,
            provenance=wish.provenance,
            name=request.state.request_id,
            salt=request.state.salt,
        )

    def _leave(self, request: Request, ticket: Ticket, completion: Completion | None) -> None:
        """The client has its answer, or wants none."""
        facts: dict[str, Any] = {"queue_s": round(ticket.queue_s, 4), "prompt_tokens": ticket.prompt_tokens}
        if completion is not None:
            facts |= {"completion_tokens": len(completion.token_ids), "finish_reason": completion.finish_reason}
        elif ticket.phase != "over":
            facts["cancelled_in"] = ticket.phase
        request.state.facts = facts
        self.engine.cancel(ticket)


async def _followed(ticket: Ticket, first: Event | None, done: list[Completion]) -> AsyncGenerator[Event]:
    """What becomes of a request, to its end."""
    event = await ticket.next() if first is None else first
    while True:
        if isinstance(event, Done):
            done.append(event.completion)
        yield event
        if isinstance(event, Done | Failed):
            return
        event = await ticket.next()

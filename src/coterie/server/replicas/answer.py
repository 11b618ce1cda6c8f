"""One answer, whichever replicas make it: where one is lost, another goes on, and nothing is sent twice."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from coterie.server.refusals import Dialect, Refusal
from coterie.server.replicas.ask import Ask, Head, Part
from coterie.server.streams import COMMENT_PING, DONE, NAMED_PING, event, unless_gone

if TYPE_CHECKING:
    from starlette.types import Receive

Result = TypeVar("Result")

TRIES = 3
"""Replicas that one request may cost: it may be the request that ends them."""

_PINGS = frozenset({COMMENT_PING, NAMED_PING})
_UNLIKE = ("usage", "coterie", "message", "response", "sequence_number")
"""Parts of events that tell what an answer took, or how many they are, not what it is."""
_PROGRESS = "prompt_progress"
_NUMBER = "sequence_number"
_DATA = b"data: "
_END = b"\n\n"
_log = logging.getLogger("coterie.server")


class LostReplica(Exception):
    """A replica ended before its answer did."""


class Answer:
    """The answer to a request.

    An answer is the same, byte for byte, whichever replica makes it. So what a lost one had sent is made again by
    another, compared with what was passed on, and not passed on twice.

    Args:
        asked: Has a replica answer.
        ask: The request.
        dialect: Whose client it is.
        cut: Set when all requests have to end.

    Attributes:
        head: How it begins, after :meth:`begin`.
        whole: Its body, after that, unless it is a stream.
    """

    def __init__(
        self, asked: Callable[[Ask], AsyncGenerator[Part]], ask: Ask, dialect: Dialect, *, cut: asyncio.Event
    ) -> None:
        self.head = Head(0, ())
        self.whole = b""
        self._asked = asked
        self._ask = ask
        self._dialect = dialect
        self._cut = cut
        self._parts: AsyncGenerator[Part] | None = None
        self._lost = 0

    async def begin(self, receive: Receive) -> bool:
        """Has a replica begin, or answer as a whole if that is no stream; returns False if the client left.

        Raises:
            Refusal: If none does.
        """

        async def work() -> None:
            while True:
                try:
                    await self._begin()
                    return
                except LostReplica:
                    self._count_lost()

        try:
            there = await unless_gone(receive, self._unless_cut(work()))
        except BaseException:
            await self._leave()
            raise
        if not there:
            await self._leave()
        return there

    async def events(self) -> AsyncGenerator[bytes]:
        """The events of a stream, each once; errors are events, too."""
        passed, so_far, told = 0, sha256(), 0
        try:
            while True:
                again, made = 0, sha256()
                try:
                    events = _events(self._left())
                    while (one := await self._unless_cut(anext(events, None))) is not None:
                        value = _value(one)
                        essence = _essence(one, value)
                        if again == passed:
                            if essence is not None:
                                so_far.update(essence)
                                passed = again = passed + 1
                            yield _with_number(one, value, told)
                            told += 1
                        elif essence is not None:
                            made.update(essence)
                            again += 1
                            if again == passed and made.digest() != so_far.digest():
                                raise _lost("another one made another answer")
                    return
                except LostReplica:
                    self._count_lost()
                    await self._unless_cut(self._begin_stream())
        except Refusal as refusal:
            body = refusal.body(self._dialect, self._ask.request_id)
            yield event(body, "error" if self._dialect == "anthropic" else None)
            if self._dialect == "openai":
                yield DONE
        finally:
            await self._leave()

    async def _begin(self) -> None:
        await self._leave()
        self._parts = self._asked(self._ask)
        head = await anext(self._parts, None)
        if not isinstance(head, Head):
            raise LostReplica
        whole = b"" if head.is_stream else b"".join([part async for part in self._left()])
        self.head, self.whole = head, whole

    async def _begin_stream(self) -> None:
        """Has another replica begin with a stream that was begun."""
        while True:
            try:
                await self._begin()
            except LostReplica:
                self._count_lost()
                continue
            if not self.head.is_stream:
                raise _lost("no other one takes it on now")
            return

    async def _left(self) -> AsyncIterator[bytes]:
        assert self._parts is not None
        async for part in self._parts:
            assert isinstance(part, bytes)
            yield part

    def _count_lost(self) -> None:
        self._lost += 1
        _log.warning("replica lost", extra={"request_id": self._ask.request_id, "facts": {"lost": self._lost}})
        if self._lost >= TRIES:
            raise _lost(f"so did {TRIES - 1} others over it")

    async def _unless_cut(self, work: Awaitable[Result]) -> Result:
        """Does something, unless all requests have to end meanwhile.

        Raises:
            Refusal: If they have.
        """
        working, cut = asyncio.ensure_future(work), asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait({working, cut}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise Refusal(503, "The server is shutting down.", code="shutting_down", retry_after=5)
        finally:
            working.cancel()
            cut.cancel()
            await asyncio.gather(working, cut, return_exceptions=True)

    async def _leave(self) -> None:
        parts, self._parts = self._parts, None
        if parts is not None:
            await parts.aclose()


def _lost(why: str) -> Refusal:
    return Refusal(502, f"The replica that answered was lost, and {why}.", code="replica_lost")


async def _events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The events in the pieces of a stream, without those that only say that it goes on."""
    rest = b""
    async for piece in pieces:
        *events, rest = (rest + piece).split(_END)
        for one in events:
            if one + _END not in _PINGS:
                yield one + _END
    if rest:
        yield rest


def _value(one: bytes) -> dict[str, Any] | None:
    """What an event says, as an object; None if it says something else."""
    try:
        value = json.loads(one.partition(_DATA)[2])
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _essence(one: bytes, value: Mapping[str, Any] | None) -> bytes | None:
    """What an event says of the answer, whichever replica makes it; None if it tells how far its prompt is read."""
    if value is None:
        return one
    if _PROGRESS in value:
        return None
    said = {key: part for key, part in value.items() if key not in _UNLIKE}
    return one.partition(_DATA)[0] + json.dumps(said, sort_keys=True).encode()


def _with_number(one: bytes, value: dict[str, Any] | None, number: int) -> bytes:
    """An event with its number, if such events have one: another replica tells more or less often how far it is."""
    if value is None or value.get(_NUMBER, number) == number:
        return one
    name = one.partition(_DATA)[0].removeprefix(b"event: ").strip().decode()
    return event(value | {_NUMBER: number}, name or None)

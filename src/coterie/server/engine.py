"""From an event loop to a model: requests that wait their turn, and one thread that owns the model.

The thread serves one request after another. What is raised over one ends that one alone. Nothing here knows of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from coterie.server.answering import answer
from coterie.server.meters import Meters
from coterie.server.refusals import Refusal, refusal_of
from coterie.server.tickets import Done, Failed, Prepared, Provenance, Ticket, Wish

if TYPE_CHECKING:
    from coterie.generation.opened import OpenModel

Result = TypeVar("Result")

STALL_S = 120.0
"""Without a layer computed for so long, a running request has got stuck."""

_POLL_S = 0.05
_LONGEST_RETRY_S = 600
_log = logging.getLogger("coterie.server")


class Engine:
    """One model and those who wait for it.

    Args:
        opened: The model; only this engine runs it from now on.
        most_waiting: Requests that may wait, beside the one that runs.
        longest_wait_s: Seconds after which a request that has not begun is given up.
        meters: What is counted.

    Attributes:
        opened: The model.
        meters: What is counted.
        draining: Whether nothing new is taken on.
    """

    def __init__(
        self,
        opened: OpenModel,
        *,
        most_waiting: int = 16,
        longest_wait_s: float = 300.0,
        meters: Meters | None = None,
    ) -> None:
        self.opened = opened
        self.meters = meters or Meters()
        self.draining = False
        self._most_waiting = most_waiting
        self._longest_wait_s = longest_wait_s
        self._waiting: list[Ticket] = []
        self._running: Ticket | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._cutting = False
        self._death: BaseException | None = None
        self._beat = time.monotonic()
        self._usual_s = 1.0
        # One thread: tokenizers take one caller at a time, and the model wants the other cores.
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="coterie-prepare")
        self._thread = threading.Thread(target=self._work, name="coterie-model", daemon=True)

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that the model works for."""
        return int(self._running is not None)

    @property
    def trouble(self) -> str | None:
        """Why nothing new can be served; None if all is well."""
        if self._death is not None or (self._thread.ident is not None and not self._thread.is_alive()):
            return "the model's thread has ended"
        if self._thread.ident is None:
            return "starting"
        if self.draining:
            return "shutting down"
        if self._running is not None and time.monotonic() - self._beat > STALL_S:
            return "the model makes no progress"
        return None

    def submit(self, wish: Wish, request_id: str) -> Ticket:
        """Takes a request on; its ticket tells what becomes of it. Call it in the event loop.

        Raises:
            Refusal: If there is no room, or nothing is served any more.
        """
        trouble = self.trouble
        if trouble is not None:
            raise Refusal(503, f"This server takes no requests: {trouble}.", code="unavailable", retry_after=5)
        with self._changed:
            if len(self._waiting) >= self._most_waiting + (self._running is None):
                raise Refusal(
                    429,
                    f"{len(self._waiting)} requests are waiting already.",
                    code="queue_full",
                    retry_after=self._retry_after(),
                )
            ticket = Ticket(wish, request_id)
            # Before anybody sees it: a timer that is set later would never be stopped, and keep the request.
            ticket.expire_after(self._longest_wait_s, self._expire)
            self._waiting.append(ticket)
        self._preparer.submit(self._prepare, ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Gives a request up: nobody waits for it any more. Harmless if it is over."""
        with self._changed:
            if ticket.phase == "over" or ticket.cancelled:
                return
            ticket.cancelled = True
            self.meters.cancelled(ticket.phase)
            self._forget(ticket)

    def cut(self) -> None:
        """Ends all requests, as a server does that has to go."""
        self.draining = True
        with self._changed:
            self._cutting = True
            for ticket in list(self._waiting):
                self._fail(ticket, _shutting_down())

    async def aside(self, work: Callable[[], Result]) -> Result:
        """Does what needs the tokenizer and not the model, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._preparer, work)

    async def idle(self, seconds: float | None = None) -> bool:
        """Waits until nothing runs and nobody waits; returns whether that came to be within the time."""
        end = None if seconds is None else time.monotonic() + seconds
        while self._running is not None or self._waiting:
            if self._death is not None or (end is not None and time.monotonic() >= end):
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def close(self) -> None:
        """Ends all requests and the threads."""
        self.cut()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._preparer.shutdown(cancel_futures=True)

    def _prepare(self, ticket: Ticket) -> None:
        if ticket.phase == "over" or ticket.cancelled:
            return
        try:
            prompt = ticket.wish.prepare()
        except BaseException as error:  # panics of Rust libraries are no Exception
            with self._changed:
                self._fail(ticket, error)
            return
        with self._changed:
            ticket.prompt = prompt
            if ticket in self._waiting:
                ticket.tell(Prepared(prompt.tokens))
                self._changed.notify_all()

    def _work(self) -> None:
        """The model's thread."""
        try:
            while self._serve_next():
                pass
        except BaseException as error:
            _log.critical("the model's thread has ended", exc_info=error)
            with self._changed:
                self._death = error
                for one in [*self._waiting, *([self._running] if self._running else [])]:
                    self._fail(one, Refusal(503, "The model's thread has ended.", code="unavailable"))
                self._running = None

    def _serve_next(self) -> bool:
        """Serves a request, once there is one; returns False at the end. Nothing of it is kept afterwards."""
        ticket = self._take()
        if ticket is None:
            return False
        self._serve(ticket)
        with self._changed:
            self._running = None
        return True

    def _take(self) -> Ticket | None:
        """The next request, once there is one; None at the end."""
        with self._changed:
            while True:
                ready = next((one for one in self._waiting if one.prompt is not None), None)
                if ready is not None:
                    self._waiting.remove(ready)
                    ready.settle()
                    self._running = ready
                    ready.phase, ready.begun, self._beat = "prefill", time.monotonic(), time.monotonic()
                    return ready
                if self._closed:
                    return None
                self._changed.wait()

    def _serve(self, ticket: Ticket) -> None:
        begun = time.monotonic()

        def should_stop() -> bool:
            self._beat = time.monotonic()
            return ticket.cancelled or self._cutting

        try:
            before = self.opened.runtime.stats().total if ticket.wish.provenance else None
            completion = answer(self.opened, ticket, should_stop=should_stop)
            took = None if before is None else Provenance.between(before, self.opened.runtime.stats().total)
        except BaseException as error:  # whatever is raised over one request ends that one alone
            with self._changed:
                self._fail(ticket, error)
            return
        self._usual_s += 0.2 * (time.monotonic() - begun - self._usual_s)
        with self._changed:
            if completion.finish_reason == "interrupted":
                self._fail(ticket, _shutting_down())
            elif ticket.phase != "over":
                ticket.phase = "over"
                self.meters.finished(ticket, completion)
                ticket.tell(Done(completion, took))

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        """Ends a request without an answer; the lock is held."""
        if ticket.phase == "over":
            return
        self._forget(ticket)
        ticket.phase = "over"
        if not ticket.cancelled:
            refusal = refusal_of(error)
            self.meters.failed(refusal)
            if refusal.status >= 500 and not isinstance(error, Refusal):
                _log.error("request failed", exc_info=error, extra={"request_id": ticket.request_id})
            ticket.tell(Failed(refusal))

    def _forget(self, ticket: Ticket) -> None:
        """Has it wait no longer; the lock is held."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            ticket.settle()
            ticket.phase = "over"

    def _expire(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket in self._waiting:
                message = f"The request waited for {self._longest_wait_s:g} s without its turn coming."
                self._fail(ticket, Refusal(503, message, code="queue_timeout", retry_after=self._retry_after()))

    def _retry_after(self) -> int:
        """Seconds until there may be room, by how long requests took lately."""
        return max(1, min(_LONGEST_RETRY_S, round(self._usual_s)))


def _shutting_down() -> Refusal:
    return Refusal(503, "The server is shutting down.", code="shutting_down", retry_after=5)

"""The thread that owns an engine's model: it takes the running requests from forward pass to forward pass.

Between two passes requests join and leave. What is raised over one ends that one alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from coterie.errors import EngineStoppedError
from coterie.generation.governor import Governor
from coterie.generation.interruption import Pulse
from coterie.generation.jobs import Beginning, Job
from coterie.generation.late_answers import LateAnswers
from coterie.generation.media_line import MediaLine
from coterie.generation.opened import OpenModel
from coterie.generation.prefixes import Prefixes
from coterie.generation.preparers import Preparers
from coterie.generation.provenance import counted
from coterie.generation.steps import Steps
from coterie.generation.tickets import Done, Failed, Ticket
from coterie.generation.waiting_line import WaitingLine
from coterie.generation.watcher import Watcher
from coterie.passes.current import Stopped
from coterie.spec import Batching

if TYPE_CHECKING:
    from coterie.generation.completion import Completion

STALL_S = 120.0
"""Without a layer computed for so long, a running request has got stuck."""

_POLL_S = 0.05
_log = logging.getLogger("coterie.engine")


class ModelThread:
    """The thread, and the requests that it has to do with. What an engine asks of it is asked in other threads.

    Args:
        opened: The model.
        governor: Shares the memory.
        prefixes: What prompts begin with, computed once.
        preparers: The threads that decode pictures and sounds.
        parallel: Requests that run at once.
        most_waiting: Requests that may wait beside these.
        longest_wait_s: Seconds after which a request that has not begun is given up.
        batching: As of :class:`~coterie.generation.engine.Engine`.
        watcher: Told how requests end.

    Attributes:
        changed: Guards the requests, and is notified when there is something to do.
        waiting: Requests that have not begun.
        running: Those that have.
        late: Those that are computed, and whose answers are still to be taken apart.
        death: What has ended the thread before its time; None if nothing has.
    """

    def __init__(
        self,
        opened: OpenModel,
        governor: Governor,
        prefixes: Prefixes,
        preparers: Preparers,
        *,
        parallel: int,
        most_waiting: int,
        longest_wait_s: float,
        batching: Batching,
        watcher: Watcher | None,
    ) -> None:
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        self.waiting = WaitingLine(
            lock, most=most_waiting, longest_s=longest_wait_s, give_up=self.fail, why=self._waited_for
        )
        self.running: list[Job] = []
        self.late = LateAnswers(parallel, self._conclude)
        self.death: BaseException | None = None
        self._opened = opened
        self._governor = governor
        self._prefixes = prefixes
        self._parallel = parallel
        self._watcher = watcher
        self._media = MediaLine(preparers, governor, self.changed)
        self._steps = Steps(batching=batching)
        self._pulse = Pulse()
        self._listening = False
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="coterie-model", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()
        self.waiting.start()

    def close(self) -> None:
        """Has it end when nothing runs any more, and waits for that. Harmless when repeated."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
            self.waiting.close()
        if self._thread.ident is not None:
            self._thread.join()
        self.waiting.join()

    @property
    def trouble(self) -> str | None:
        """Why nothing new can be served; None if all is well."""
        if self.death is not None or (self._thread.ident is not None and not self._thread.is_alive()):
            return "the model's thread has ended"
        if self._thread.ident is None:
            return "starting"
        if not self.waiting.is_watched:
            return "the queue's thread has ended"
        if self._opened.runtime.cache.failure is not None:
            return "experts cannot be read any more"
        if len(self.running) > len(self._media) and time.monotonic() - self._pulse.beat > STALL_S:
            return "the model makes no progress"
        return None

    def cancel(self, ticket: Ticket) -> None:
        """Gives a request up: nobody waits for it any more. Harmless if it is over."""
        with self.changed:
            job = next((one for one in (*self.waiting, *self.running) if one.ticket is ticket), None)
            if job is None or ticket.phase == "over":
                return
            self._tell(lambda watcher: watcher.cancelled(ticket.phase))
            job.wanted = False
            decoding = job in self._media
            self._media.withdraw(job)
            if not self.waiting.remove(job):
                self._stop(job)
                if decoding:
                    self._let_go(job)
            ticket.tell_cancelled()
            self.changed.notify_all()

    def cut(self) -> None:
        """Ends all requests; the lock is held."""
        for job in self.running:
            self._stop(job)
        for job in (*self.waiting.clear(), *self.running, *self.late.jobs):
            self.fail(job, stopping())
        self.changed.notify_all()

    def fail(self, job: Job, error: BaseException) -> None:
        """Ends a request without an answer, and tells so; the lock is held."""
        self._media.withdraw(job)
        if job.ticket.phase != "over":
            self._tell(lambda watcher: watcher.failed(job.ticket, error))
            job.ticket.tell(Failed(error))

    def _work(self) -> None:
        """The model's thread."""
        try:
            while self._turn():
                pass
        except BaseException as error:
            _log.critical("the model's thread has ended", exc_info=error)
            with self.changed:
                self.death = error
                for job in (*self.waiting.clear(), *self.running):
                    self.fail(job, EngineStoppedError("The model's thread has ended.", stopping=False))
                    self._steps_without(job)
                self.running.clear()
        finally:
            self._listen(wanted=False)

    def _turn(self) -> bool:
        """Lets requests join, has a forward pass, and lets them leave; False at the end."""
        while (job := self._next()) is not None:
            if job.decodes:
                self._decode(job)
            else:
                self._begin(job)
        self._begin_decoded()
        if not self.running:
            return not self._closed
        for job in tuple(self.running):
            self._provide(job)
        # Layers of a step for answers tell of themselves when it is over, and that takes a millisecond.
        self._listen(wanted=any(one.phase == "prefill" for job in self.running for one in job.sequences))
        self._pulse.beat = time.monotonic()
        meters = {one: job.meter for job in self.running if job.meter is not None for one in job.sequences}
        before = counted(self._opened.runtime, meters.values())
        try:
            ran = self._steps.step()
        except BaseException as error:  # what is no Exception ends its request all the same, and no other
            _log.debug("a step ended early", exc_info=error)
            ran = ()
        if before is not None and (after := counted(self._opened.runtime, meters.values())) is not None:
            for sequence in ran:
                if sequence.computed and (meter := meters.get(sequence)) is not None:
                    meter.add(before, after, shared=len(ran) > 1)
        for job in tuple(self.running):
            job.note_progress()
            if job.ticket.phase == "over":
                self._leave(job)
            else:
                self._follow(job)
        self._governor.settle()
        return True

    def _listen(self, *, wanted: bool) -> None:
        """Has layers tell when they are computed, so that it is seen if they are not, or no more."""
        if wanted == self._listening:
            return
        self._listening, runtime = wanted, self._opened.runtime
        (runtime.add_observer if wanted else runtime.remove_observer)(self._pulse)

    def _next(self) -> Job | None:
        """The request that begins now; waits while there is nothing to do. None if it is time for a step, or the end.

        Whoever waits first is first: nobody overtakes one that waits for memory, or for being alone.
        """
        with self.changed:
            while True:
                ready = self.waiting.ready
                if ready is not None and self._may_begin(ready):
                    self.waiting.remove(ready)
                    self.running.append(ready)
                    ready.ticket.phase, ready.ticket.begun = "prefill", time.monotonic()
                    self._pulse.beat = time.monotonic()
                    return ready
                if self._media.over or any(job.sequences for job in self.running) or (self._closed and ready is None):
                    return None
                if ready is None or ready in self.waiting:
                    self.changed.wait(_POLL_S if self._media.late else None)
                    if self._media.late:
                        return None

    def _may_begin(self, job: Job) -> bool:
        """Whether there is room for it; fails it if there will never be. The lock is held."""
        if len(self.running) >= (1 if job.alone else self._parallel):
            return False
        try:
            return self._governor.promise(job, job.most)
        except Exception as error:
            self.waiting.remove(job)
            self.fail(job, error)
            return False

    def _decode(self, job: Job) -> None:
        """Has its pictures and sounds decoded."""
        try:
            self._media.add(job)
        except Exception as error:
            self._leave(job, error)

    def _begin_decoded(self) -> None:
        """Goes on with those whose pictures and sounds have been decoded."""
        for job, failed in self._media.ready():
            if job not in self.running:
                continue
            if failed is not None or job.ticket.phase == "over":
                self._leave(job, failed)
            else:
                self._begin(job)

    def _begin(self, job: Job) -> None:
        """Its inputs, and its sequence; all of its generation, if that is one call."""
        try:
            self._listen(wanted=True)
            job.begin(self._opened, Beginning(job, self._prefixes, self._governor))
            self._governor.narrow(job, job.most, job.media_nbytes)
            if job.is_given:
                job.say(self._opened, self._steps)
                self._watch(job)
                return
            if job.sequence is not None:
                self._watch(job)
                self._steps.add(job.sequence)
                return
            self._governor.hold(job, job.most, job.media_nbytes)
            before = counted(self._opened.runtime, [job.meter])
            job.search(self._opened)
            if job.meter is not None and before is not None:
                job.meter.add(before, self._opened.runtime.stats().total, shared=False)
        except BaseException as error:  # whatever is raised over one request ends that one alone
            self._leave(job, error)
            return
        self._end(job)

    def _follow(self, job: Job) -> None:
        """Sees to its sound, if it has one, and to its end."""
        try:
            job.follow(self._steps)
        except BaseException as error:
            self._leave(job, _ended_by(error))
            return
        if job.over:
            self._end(job)
        elif job.sequences != (job.sequence,):  # its talker may have begun
            self._watch(job)

    def _watch(self, job: Job) -> None:
        """Has what it holds let go of as soon as what it computes has been told to end."""
        let_go = partial(self._let_go, job)
        for sequence in job.sequences:
            sequence.on_cancelled = let_go

    def _provide(self, job: Job) -> None:
        """Sees to its memory for the next pass; without it, or if nobody wants it any more, it leaves."""
        if job.ticket.phase == "over":
            self._leave(job)
            return
        if not job.sequences:
            return
        try:
            self._governor.hold(job, job.coming, job.media_nbytes)
        except Exception as error:
            self._leave(job, error)

    def _end(self, job: Job) -> None:
        """Its answer is whole, or something has ended it."""
        if job.ends_apart:
            self.late.expect(job)
            self._leave(job)
            self.late.begin(job)
            return
        try:
            completion = job.end(self._opened)
        except BaseException as error:
            self._leave(job, _ended_by(error))
            return
        self._leave(job, completion=completion)

    def _conclude(self, job: Job) -> None:
        """Takes its answer apart, and hands it over; in a thread of its own."""
        try:
            completion = job.end(self._opened)
        except BaseException as error:
            with self.changed:
                self.fail(job, _ended_by(error))
            return
        with self.changed:
            self._finish(job, completion)

    def _leave(self, job: Job, error: BaseException | None = None, *, completion: Completion | None = None) -> None:
        """It takes no part any more: what it held is free before anybody is told how it ended.

        Args:
            job: A request that runs.
            error: Why there is no answer.
            completion: The answer.
        """
        self._steps_without(job)
        job.close()
        self._governor.release(job)
        with self.changed:
            if job in self.running:
                self.running.remove(job)
            if error is not None:
                self.fail(job, error)
            elif completion is not None:
                self._finish(job, completion)

    def _let_go(self, job: Job) -> None:
        """What it held is free before its time: if nobody wants it any more, its place is free as well, at once."""
        if not all(one.ended for one in job.sequences):
            return
        with self.changed:
            if not job.wanted and job in self.running:
                job.close()
                self.running.remove(job)
                self._governor.forget(job)
                self.changed.notify_all()

    def _finish(self, job: Job, completion: Completion) -> None:
        """Hands a request its answer; the lock is held."""
        ticket = job.ticket
        self.waiting.served(time.monotonic() - (ticket.begun or 0.0))
        if ticket.phase != "over":
            try:
                self._tell(lambda watcher: watcher.finished(ticket, completion))
                if (speech := job.speech) is not None:
                    self._tell(lambda watcher: watcher.spoken(ticket, speech))
            finally:
                ticket.tell(Done(completion, job.provenance, job.speech))

    def _steps_without(self, job: Job) -> None:
        for sequence in job.sequences:
            self._steps.remove(sequence)

    def _stop(self, job: Job) -> None:
        """Has what it computes end at the next layer; the lock is held."""
        job.request.end()
        self._steps_without(job)

    def _tell(self, what: Callable[[Watcher], None]) -> None:
        """Tells the watcher something; what goes wrong there is no request's fault, nor that of a thread of this."""
        if self._watcher is None:
            return
        try:
            what(self._watcher)
        except Exception as error:
            _log.error("the watcher cannot be told", exc_info=error)

    def _waited_for(self, job: Job) -> str:
        """What a request waits for, if that is memory."""
        if job.prompt is None or job.alone or len(self.running) >= self._parallel:
            return ""
        return self._governor.shortage(job.most)


def _ended_by(error: BaseException) -> BaseException:
    return stopping() if isinstance(error, Stopped) else error


def stopping() -> EngineStoppedError:
    """What requests are told that an engine ends."""
    return EngineStoppedError("Nothing is served any more: the engine is shutting down.", stopping=True)

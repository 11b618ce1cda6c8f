"""Several requests at once to one model: who waits, who runs, and one thread that owns the model.

The thread takes the running requests from forward pass to forward pass. Between two of them requests join and leave.
What is raised over one ends that one alone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, get_args

from coterie.errors import EngineStoppedError, UsageError
from coterie.generation.asides import Asides
from coterie.generation.asked import Asked, nbytes_of, preparing
from coterie.generation.governor import Governor
from coterie.generation.interruption import Pulse
from coterie.generation.jobs import Beginning, Job
from coterie.generation.late_answers import LateAnswers
from coterie.generation.media_line import MediaLine
from coterie.generation.opened import OpenModel
from coterie.generation.prefix_copy import PrefixCopy
from coterie.generation.prefixes import PIECE, Prefixes
from coterie.generation.preparers import UNKNOWN_NBYTES, Preparers
from coterie.generation.provenance import ProvenanceMeter, counted
from coterie.generation.sampling import Sampling
from coterie.generation.speech import Voice
from coterie.generation.steps import Steps
from coterie.generation.tickets import Done, Failed, Prepared, Ticket
from coterie.generation.waiting_line import WaitingLine
from coterie.generation.watcher import Watcher
from coterie.hf.limited import kept_ready
from coterie.passes.current import Stopped
from coterie.passes.encoders import watch_encoders
from coterie.profiles.facts import check_group
from coterie.spec import DEFAULT_BATCHING, DEFAULT_PARALLEL, PREFIX_DIR_NBYTES, Batching

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from coterie.generation.completion import Completion

Result = TypeVar("Result")

STALL_S = 120.0
"""Without a layer computed for so long, a running request has got stuck."""

_POLL_S = 0.05
_DRAINING = "shutting down"
_log = logging.getLogger("coterie.engine")


class Engine:
    """One model and those who ask it at the same time.

    Requests begin in the order in which they came, as soon as one of ``parallel`` places is free and what they can come
    to need of memory fits beside what the others can. Those that run take turns as
    :class:`~coterie.generation.steps.Steps` says. Each gets the answer that it would get alone, unless batching is
    ``fast``.

    While it is open nobody else should run the model. Leaving it as a context ends all requests. It does not close the
    model.

    Args:
        model: From :func:`coterie.load`, or with its processors.
        parallel: Requests that run at once.
        most_waiting: Requests that may wait beside these.
        longest_wait_s: Seconds after which a request that has not begun is given up.
        piece: Tokens of a prompt that are computed in one pass. Of prompts that are longer, outputs are those that
            transformers gives with ``prefill_chunk_size`` of that.
        prefix_memory: Bytes of the experts' memory that the beginnings of prompts may take, beside what requests leave
            of the room for a context. Default: a sixteenth of it.
        prefix_dir: A directory of this user's alone, made if need be, in which these are copied, for the time after a
            restart and for what memory has no room for. Several processes may share it.
        prefix_dir_limit: Bytes that its files may take.
        batching: ``exact`` if each answer is the one that it would be alone. ``fast`` if who is beside it may change
            the last bits of its logits, and so sometimes a token: answers of models that cannot be computed together
            exactly share passes, too.
        watcher: Told how requests end.

    Attributes:
        opened: The model.
        parallel: Requests that run at once.
        batching: That given.
        governor: Shares the memory.
        prefixes: What prompts begin with, computed once.
        draining: Whether nothing new is taken on.
        undertaken: Those who were promised an answer that takes several requests: their later ones are no new ones.

    Raises:
        LoadError: If the model has no tokenizer.
        UsageError: If a number is out of range, or the directory open to others.
        OutputError: If the directory cannot be used.
    """

    def __init__(
        self,
        model: PreTrainedModel | OpenModel,
        *,
        parallel: int = DEFAULT_PARALLEL,
        most_waiting: int = 16,
        longest_wait_s: float = 300.0,
        piece: int = PIECE,
        prefix_memory: int | None = None,
        prefix_dir: str | Path | None = None,
        prefix_dir_limit: int = PREFIX_DIR_NBYTES,
        batching: Batching = DEFAULT_BATCHING,
        watcher: Watcher | None = None,
    ) -> None:
        for what, number, least in (("parallel", parallel, 1), ("most_waiting", most_waiting, 0), ("piece", piece, 1)):
            if number < least:
                raise UsageError(f"{what} must be at least {least}, not {number}.", got=number)
        if batching not in get_args(Batching):
            raise UsageError(f"There is no batching {batching!r}.", advice="It is exact or fast.", got=batching)
        self.opened = model if isinstance(model, OpenModel) else OpenModel.of(model)
        watch_encoders(self.opened.model)
        self.parallel = parallel
        self.batching: Batching = batching
        self.governor = Governor(self.opened.runtime)
        self.draining = False
        self.undertaken: set[object] = set()
        copy = None if prefix_dir is None else PrefixCopy.of(self.opened.model, prefix_dir, prefix_dir_limit)
        self.prefixes = Prefixes(0, piece=piece, copy=copy)
        self.governor.share(self.prefixes, prefix_memory)
        self._watcher = watcher
        self._names = map("request-{}".format, itertools.count(1))
        self._running: list[Job] = []
        self._steps = Steps(batching=batching)
        self._pulse = Pulse()
        self._listening = False
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._waiting = WaitingLine(
            lock, most=most_waiting, longest_s=longest_wait_s, give_up=self._fail, why=self._waited_for
        )
        self._closed = False
        self._death: BaseException | None = None
        self._kept = ExitStack()
        self._preparers = Preparers()
        self._asides = Asides(
            self._preparers, most=parallel + most_waiting, longest_s=longest_wait_s,
            retry_after=lambda: self._waiting.retry_after,
        )  # fmt: skip
        self._media = MediaLine(self._preparers, self.governor, self._changed)
        self._late = LateAnswers(parallel, self._conclude)
        self._thread = threading.Thread(target=self._work, name="coterie-model", daemon=True)

    def start(self) -> Self:
        """Begins to serve; entering it as a context does that, too."""
        self._kept.enter_context(kept_ready())
        self._thread.start()
        self._waiting.start()
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that the model works for."""
        return len(self._running)

    @property
    def trouble(self) -> str | None:
        """Why nothing new can be served; None if all is well."""
        if self._death is not None or (self._thread.ident is not None and not self._thread.is_alive()):
            return "the model's thread has ended"
        if self._thread.ident is None:
            return "starting"
        if not self._waiting.is_watched:
            return "the queue's thread has ended"
        if self.opened.runtime.cache.failure is not None:
            return "experts cannot be read any more"
        if len(self._running) > len(self._media) and time.monotonic() - self._pulse.beat > STALL_S:
            return "the model makes no progress"
        return _DRAINING if self.draining else None

    def submit(
        self,
        asked: Asked,
        sampling: Sampling | None = None,
        *,
        provenance: bool = False,
        name: str | None = None,
        salt: str = "",
        nbytes: int | None = None,
        repeated: bool = False,
        whose: object = None,
        domain: str | None = None,
        voice: Voice | None = None,
    ) -> Ticket:
        """Takes a request on; its ticket tells what becomes of it.

        Args:
            asked: A text to continue, token ids, messages of a conversation as
                :func:`coterie.chat_inputs` takes them, or inputs from there or from :func:`coterie.build_inputs`.
            sampling: How tokens are chosen.
            provenance: Whether the answer is to say what it took of experts.
            name: What the request is called.
            salt: Whose it is. Prompts that begin alike share what is computed of that, and so become faster, only under
                the same one: else how long an answer takes would tell what others have asked.
            nbytes: How long what is asked is, where that is not seen: short ones are made ready first.
            repeated: Whether others with the same prompt come with it, for several answers to one question. What is
                computed of the prompt is kept to its end then, and the others begin with their first new token.
            whose: One of :attr:`undertaken`: then it is taken on even while it drains.
            domain: What it is about, for a profile that is being recorded
                (:meth:`~coterie.engine.runtime.Runtime.record_profile`); None for the recorder's domain.
            voice: How the answer is spoken, by a whole omni model; None for text alone. The prompt has to be one that a
                chat template made, as it is of messages.

        Raises:
            QueueFullError: If there is no room.
            EngineStoppedError: If nothing is served any more.
            UsageError: If the domain's name cannot be.
        """
        if domain is not None:
            check_group("text", domain, "prompt")
        ticket = Ticket(name or next(self._names), self.cancel)
        meter = ProvenanceMeter(self.opened.runtime.drop_cold) if provenance else None
        job = Job(
            ticket, preparing(self.opened, asked), sampling or Sampling(), meter=meter, salt=salt,
            nbytes=nbytes_of(asked) if nbytes is None else nbytes, repeated=repeated, domain=domain,
            voice=voice,
        )  # fmt: skip
        with self._changed:
            # With the lock: whoever ends all requests at the same time sees this one, or has it refused here.
            trouble = self.trouble
            if trouble is not None and not (trouble == _DRAINING and whose in self.undertaken):
                raise EngineStoppedError(f"This engine takes no requests: {trouble}.", stopping=False)
            self._waiting.add(job, self.parallel - len(self._running))
            try:
                job.work = self._preparers.submit(partial(self._prepare, job), job.nbytes)
            except BaseException:  # no more threads, for instance: nobody would make it ready
                self._waiting.remove(job)
                raise
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Gives a request up: nobody waits for it any more. Harmless if it is over."""
        with self._changed:
            job = next((one for one in (*self._waiting, *self._running) if one.ticket is ticket), None)
            if job is None or ticket.phase == "over":
                return
            self._tell(lambda watcher: watcher.cancelled(ticket.phase))
            job.wanted = False
            decoding = job in self._media
            self._media.withdraw(job)
            if not self._waiting.remove(job):
                self._stop(job)
                if decoding:
                    self._let_go(job)
            ticket.tell_cancelled()
            self._changed.notify_all()

    def cut(self) -> None:
        """Ends all requests, as a server does that has to go."""
        self.draining = True
        with self._changed:
            self.undertaken.clear()
            for job in self._running:
                self._stop(job)
            for job in (*self._waiting.clear(), *self._running, *self._late.jobs):
                self._fail(job, _stopping())
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all requests and the threads. Harmless when repeated."""
        self.cut()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._waiting.close()
        if self._thread.ident is not None:
            self._thread.join()
        self._waiting.join()
        self._preparers.close()
        self.prefixes.close()
        self._late.shutdown()
        self._kept.close()

    async def aside(self, work: Callable[[], Result], *, nbytes: int = UNKNOWN_NBYTES) -> Result:
        """Does what needs the tokenizer and not the model, off the event loop, as soon and as long as requests wait.

        Args:
            work: What.
            nbytes: How long the text is.

        Raises:
            QueueFullError: If there is no room.
            QueueTimeoutError: If it takes too long.
        """
        return await self._asides.do(work, nbytes)

    async def idle(self, seconds: float | None = None) -> bool:
        """Waits until nobody waits for anything any more; returns whether that came to be within the time."""
        end = None if seconds is None else time.monotonic() + seconds
        while self._running or self._waiting or self._late or self.undertaken:
            if self._death is not None or (end is not None and time.monotonic() >= end):
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _prepare(self, job: Job, wanted: bool) -> None:
        if not wanted or job.ticket.phase == "over":
            return
        try:
            prompt = job.prepare(self.opened)
            self.prefixes.expect(job.salt)
        except BaseException as error:  # panics of Rust libraries are no Exception
            with self._changed:
                self._waiting.remove(job)
                self._fail(job, error)
            return
        with self._changed:
            job.prompt = prompt
            if job in self._waiting:
                job.ticket.tell(Prepared(prompt.tokens))
                self._changed.notify_all()

    def _work(self) -> None:
        """The model's thread."""
        try:
            while self._turn():
                pass
        except BaseException as error:
            _log.critical("the model's thread has ended", exc_info=error)
            with self._changed:
                self._death = error
                for job in (*self._waiting.clear(), *self._running):
                    self._fail(job, EngineStoppedError("The model's thread has ended.", stopping=False))
                    self._steps_without(job)
                self._running.clear()
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
        if not self._running:
            return not self._closed
        for job in tuple(self._running):
            self._provide(job)
        # Layers of a step for answers tell of themselves when it is over, and that takes a millisecond.
        self._listen(wanted=any(one.phase == "prefill" for job in self._running for one in job.sequences))
        self._pulse.beat = time.monotonic()
        meters = {one: job.meter for job in self._running if job.meter is not None for one in job.sequences}
        before = counted(self.opened.runtime, meters.values())
        try:
            ran = self._steps.step()
        except BaseException as error:  # what is no Exception ends its request all the same, and no other
            _log.debug("a step ended early", exc_info=error)
            ran = ()
        if before is not None and (after := counted(self.opened.runtime, meters.values())) is not None:
            for sequence in ran:
                if sequence.computed and (meter := meters.get(sequence)) is not None:
                    meter.add(before, after, shared=len(ran) > 1)
        for job in tuple(self._running):
            job.note_progress()
            if job.ticket.phase == "over":
                self._leave(job)
            else:
                self._follow(job)
        self.governor.settle()
        return True

    def _listen(self, *, wanted: bool) -> None:
        """Has layers tell when they are computed, so that it is seen if they are not, or no more."""
        if wanted == self._listening:
            return
        self._listening, runtime = wanted, self.opened.runtime
        (runtime.add_observer if wanted else runtime.remove_observer)(self._pulse)

    def _next(self) -> Job | None:
        """The request that begins now; waits while there is nothing to do. None if it is time for a step, or the end.

        Whoever waits first is first: nobody overtakes one that waits for memory, or for being alone.
        """
        with self._changed:
            while True:
                ready = self._waiting.ready
                if ready is not None and self._may_begin(ready):
                    self._waiting.remove(ready)
                    self._running.append(ready)
                    ready.ticket.phase, ready.ticket.begun = "prefill", time.monotonic()
                    self._pulse.beat = time.monotonic()
                    return ready
                if self._media.over or any(job.sequences for job in self._running) or (self._closed and ready is None):
                    return None
                if ready is None or ready in self._waiting:
                    self._changed.wait(_POLL_S if self._media.late else None)
                    if self._media.late:
                        return None

    def _may_begin(self, job: Job) -> bool:
        """Whether there is room for it; fails it if there will never be. The lock is held."""
        if len(self._running) >= (1 if job.alone else self.parallel):
            return False
        try:
            return self.governor.promise(job, job.most)
        except Exception as error:
            self._waiting.remove(job)
            self._fail(job, error)
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
            if job not in self._running:
                continue
            if failed is not None or job.ticket.phase == "over":
                self._leave(job, failed)
            else:
                self._begin(job)

    def _begin(self, job: Job) -> None:
        """Its inputs, and its sequence; all of its generation, if that is one call."""
        try:
            self._listen(wanted=True)
            job.begin(self.opened, Beginning(job, self.prefixes, self.governor))
            self.governor.narrow(job, job.most, job.media_nbytes)
            if job.is_given:
                job.say(self.opened, self._steps)
                self._watch(job)
                return
            if job.sequence is not None:
                self._watch(job)
                self._steps.add(job.sequence)
                return
            self.governor.hold(job, job.most, job.media_nbytes)
            before = counted(self.opened.runtime, [job.meter])
            job.search(self.opened)
            if job.meter is not None and before is not None:
                job.meter.add(before, self.opened.runtime.stats().total, shared=False)
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
            self.governor.hold(job, job.coming, job.media_nbytes)
        except Exception as error:
            self._leave(job, error)

    def _end(self, job: Job) -> None:
        """Its answer is whole, or something has ended it."""
        if job.ends_apart:
            self._late.expect(job)
            self._leave(job)
            self._late.begin(job)
            return
        try:
            completion = job.end(self.opened)
        except BaseException as error:
            self._leave(job, _ended_by(error))
            return
        self._leave(job, completion=completion)

    def _conclude(self, job: Job) -> None:
        """Takes its answer apart, and hands it over; in a thread of its own."""
        try:
            completion = job.end(self.opened)
        except BaseException as error:
            with self._changed:
                self._fail(job, _ended_by(error))
            return
        with self._changed:
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
        self.governor.release(job)
        with self._changed:
            if job in self._running:
                self._running.remove(job)
            if error is not None:
                self._fail(job, error)
            elif completion is not None:
                self._finish(job, completion)

    def _let_go(self, job: Job) -> None:
        """What it held is free before its time: if nobody wants it any more, its place is free as well, at once."""
        if not all(one.ended for one in job.sequences):
            return
        with self._changed:
            if not job.wanted and job in self._running:
                job.close()
                self._running.remove(job)
                self.governor.forget(job)
                self._changed.notify_all()

    def _finish(self, job: Job, completion: Completion) -> None:
        """Hands a request its answer; the lock is held."""
        ticket = job.ticket
        self._waiting.served(time.monotonic() - (ticket.begun or 0.0))
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

    def _fail(self, job: Job, error: BaseException) -> None:
        """Ends a request without an answer; the lock is held."""
        self._media.withdraw(job)
        if job.ticket.phase != "over":
            self._tell(lambda watcher: watcher.failed(job.ticket, error))
            job.ticket.tell(Failed(error))

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
        if job.prompt is None or job.alone or len(self._running) >= self.parallel:
            return ""
        return self.governor.shortage(job.most)


def _ended_by(error: BaseException) -> BaseException:
    return _stopping() if isinstance(error, Stopped) else error


def _stopping() -> EngineStoppedError:
    return EngineStoppedError("Nothing is served any more: the engine is shutting down.", stopping=True)

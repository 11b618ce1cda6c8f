"""Several requests at once to one model: who asks, who waits, and what they share.

One thread owns the model (:mod:`coterie.generation.model_thread`). Whoever asks is in others.
"""

from __future__ import annotations

import asyncio
import itertools
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
from coterie.generation.jobs import Job
from coterie.generation.model_thread import ModelThread
from coterie.generation.opened import OpenModel
from coterie.generation.prefix_copy import PrefixCopy
from coterie.generation.prefixes import PIECE, Prefixes
from coterie.generation.preparers import UNKNOWN_NBYTES, Preparers
from coterie.generation.provenance import ProvenanceMeter
from coterie.generation.sampling import Sampling
from coterie.generation.speech import Voice
from coterie.generation.tickets import Prepared, Ticket
from coterie.generation.watcher import Watcher
from coterie.hf.limited import kept_ready
from coterie.passes.encoders import watch_encoders
from coterie.profiles.facts import check_group
from coterie.spec import DEFAULT_BATCHING, DEFAULT_PARALLEL, PREFIX_DIR_NBYTES, Batching

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")

_POLL_S = 0.05
_DRAINING = "shutting down"


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
        self._names = map("request-{}".format, itertools.count(1))
        self._kept = ExitStack()
        self._preparers = Preparers()
        self._thread = ModelThread(
            self.opened, self.governor, self.prefixes, self._preparers, parallel=parallel, most_waiting=most_waiting,
            longest_wait_s=longest_wait_s, batching=batching, watcher=watcher,
        )  # fmt: skip
        self._asides = Asides(
            self._preparers, most=parallel + most_waiting, longest_s=longest_wait_s,
            retry_after=lambda: self._thread.waiting.retry_after,
        )  # fmt: skip

    def start(self) -> Self:
        """Begins to serve; entering it as a context does that, too."""
        self._kept.enter_context(kept_ready())
        self._thread.start()
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
        return len(self._thread.waiting)

    @property
    def running(self) -> int:
        """Requests that the model works for."""
        return len(self._thread.running)

    @property
    def trouble(self) -> str | None:
        """Why nothing new can be served; None if all is well."""
        trouble = self._thread.trouble
        if trouble is not None:
            return trouble
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
        thread = self._thread
        with thread.changed:
            # With the lock: whoever ends all requests at the same time sees this one, or has it refused here.
            trouble = self.trouble
            if trouble is not None and not (trouble == _DRAINING and whose in self.undertaken):
                raise EngineStoppedError(f"This engine takes no requests: {trouble}.", stopping=False)
            thread.waiting.add(job, self.parallel - len(thread.running))
            try:
                job.work = self._preparers.submit(partial(self._prepare, job), job.nbytes)
            except BaseException:  # no more threads, for instance: nobody would make it ready
                thread.waiting.remove(job)
                raise
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Gives a request up: nobody waits for it any more. Harmless if it is over."""
        self._thread.cancel(ticket)

    def cut(self) -> None:
        """Ends all requests, as a server does that has to go."""
        self.draining = True
        with self._thread.changed:
            self.undertaken.clear()
            self._thread.cut()

    def close(self) -> None:
        """Ends all requests and the threads. Harmless when repeated."""
        self.cut()
        self._thread.close()
        self._preparers.close()
        self.prefixes.close()
        self._thread.late.shutdown()
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
        thread = self._thread
        while thread.running or thread.waiting or thread.late or self.undertaken:
            if thread.death is not None or (end is not None and time.monotonic() >= end):
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
            with self._thread.changed:
                self._thread.waiting.remove(job)
                self._thread.fail(job, error)
            return
        with self._thread.changed:
            job.prompt = prompt
            if job in self._thread.waiting:
                job.ticket.tell(Prepared(prompt.tokens))
                self._thread.changed.notify_all()

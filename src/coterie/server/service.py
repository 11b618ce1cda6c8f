"""What the routes have in common: the engine, who is asked, and how an answer gets to its client."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from starlette.requests import ClientDisconnect, Request

from coterie.generation.asked import Measured, Prompt, measuring
from coterie.generation.engine import Engine
from coterie.generation.sampling import Sampling
from coterie.generation.speech import can_speak, voices
from coterie.generation.tickets import Done, Failed
from coterie.hf.token_bytes import TokenBytes
from coterie.server.bodies import Bodies
from coterie.server.choices import AT_ONCE, Choices, Numbered
from coterie.server.identity import current
from coterie.server.meters import Meters
from coterie.server.prompts import Prompts
from coterie.server.refusals import Refusal
from coterie.server.streams import PING_S, EventStream, unless_gone
from coterie.server.transcripts import Transcripts
from coterie.server.wishes import Wish

if TYPE_CHECKING:
    from coterie.server.domains import Domains
    from coterie.server.explorer import Explorer

Result = TypeVar("Result")

HEADERS_WITHIN_S = 0.05
"""A stream begins so soon, if it is not known by then that the request is none."""

UNTRAINED_TOKENS = 256
"""New tokens of an answer of a model that has no chat template, if the request does not say."""

Events = Callable[[AsyncGenerator[Numbered], Choices], AsyncGenerator[bytes]]
"""Writes what becomes of a request's answers as server-sent events."""


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
        tokens: Its tokens one by one.
        fingerprint: Changes with the model, its store or its scheme.
        demand: What is asked of the model's experts.
        explorer: Asks the profile that the server was given; None without one.
        domains: What requests may say that they are about; None where no profile is recorded.
        voices: In which voices the model speaks; none if it does not.
        transcripts: What was said in the last answers that were spoken.
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
        self.tokens = TokenBytes(engine.opened.processors.tokenizer)
        self.fingerprint = "fp_" + sha256(engine.opened.runtime.source.identity.encode()).hexdigest()[:12]
        self.demand = meters.watch(engine)
        self.explorer: Explorer | None = None
        self.domains: Domains | None = None
        model = engine.opened.model
        self.voices = voices(model.config) if can_speak(model) else []
        self.transcripts = Transcripts()
        self._ping_s = ping_s
        self._open: set[Choices] = set()

    @property
    def parallel(self) -> int:
        """Requests that the model works for at once."""
        return self.engine.parallel

    def phases(self) -> list[Literal["prefill", "decode"]]:
        """How far the requests are that the model works for; the first ones first."""
        tickets = (ticket for choices in self._open for ticket in choices.tickets)
        begun = sorted((one for one in tickets if one.begun is not None), key=lambda one: one.begun or 0.0)
        return [one.phase for one in begun if one.phase in ("prefill", "decode")]

    @property
    def modalities(self) -> list[str]:
        """What the model takes."""
        return ["text", *self.engine.opened.processors.kinds]

    @property
    def silence(self) -> str:
        """Why the model does not speak."""
        source = self.engine.opened.runtime.source
        thinker_alone = source.store is not None and source.store.manifest.model.component is not None
        if source.component is not None and not thinker_alone:
            return f"{self.name} does not speak: it was opened without its talker. coterie serve --speech opens it."
        return f"{self.name} does not speak: it has no talker."

    def said(self, request: Request) -> Callable[[str], str | None]:
        """Tells what was said in an answer before, by the id of its sound; None if it is not known."""
        return lambda name: self.transcripts.find(request.state.salt, name, time.time())

    def domain(self, name: str | None) -> str | None:
        """What a request says that it is about, if it may say so."""
        if name is None:
            return None
        if self.domains is None:
            raise Refusal(
                400, "coterie.domain is for a profile, and this server records none: coterie serve --record-profile "
                "FILE.", param="coterie.domain",
            )  # fmt: skip
        return self.domains.taken(name)

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

    async def aside(self, request: Request, work: Callable[[], Result]) -> Result:
        """Does what needs the tokenizer and not the model, for as long as the client waits for it.

        Raises:
            EngineError: If there is no room for it, or it takes too long.
            ClientDisconnect: If nobody waits for it any more.
        """
        done: list[Result] = []

        async def wait() -> None:
            done.append(await self.engine.aside(work, nbytes=request.state.nbytes))

        if not await unless_gone(request.receive, wait()):
            raise ClientDisconnect
        return done[0]

    async def whole(self, request: Request, wishes: Sequence[Wish]) -> list[Done]:
        """The answers, once they are whole.

        Raises:
            Refusal: If there is none.
            ClientDisconnect: If nobody waits for them any more.
        """
        choices = self._choices(request, wishes)

        async def wait() -> None:
            async for _, event in choices.events():
                if isinstance(event, Failed):
                    raise event.error

        try:
            await unless_gone(request.receive, wait())
        finally:
            self._leave(request, choices)
        if len(choices.done) < len(wishes):
            raise ClientDisconnect
        return [choices.done[number] for number in range(len(wishes))]

    async def prompt_tokens(self, request: Request, prepare: Callable[[], Prompt]) -> int:
        """Length of a prompt, as it would be read.

        Pictures and sounds are decoded for it, so it waits for its turn if it has some.

        Raises:
            Refusal: If it is none.
            ClientDisconnect: If nobody waits for it any more.
        """
        prompt = await self.aside(request, prepare)
        if prompt.tokens is not None:
            return prompt.tokens
        try:
            await self.whole(request, [Wish(prepare=lambda: measuring(prompt), sampling=Sampling(max_new_tokens=1))])
        except Measured as measured:
            return measured.tokens
        raise AssertionError("a prompt that was to be measured was answered")

    async def stream(self, request: Request, wishes: Sequence[Wish], events: Events, *, ping: bytes) -> EventStream:
        """The answers as they come, as events.

        Raises:
            Refusal: If it is known soon that there is none; later it is told within the stream.
        """
        choices = self._choices(request, wishes)

        def leave() -> None:
            self._leave(request, choices)

        try:
            first = await choices.soon(HEADERS_WITHIN_S)
            if first is not None and isinstance(first[1], Failed):
                raise first[1].error
        except BaseException:
            leave()
            raise
        return EventStream(events(choices.events(first), choices), ping=ping, ping_s=self._ping_s, close=leave)

    async def sound(self, request: Request, wish: Wish, pieces: Events, *, kind: str) -> EventStream:
        """The sound of an answer as it comes, as bytes, in which no error can be told.

        Raises:
            Refusal: If there is none. What fails after the first piece breaks the answer off.
            ClientDisconnect: If nobody waits for it any more.
        """
        choices = self._choices(request, [wish])
        written = pieces(choices.events(), choices)
        first: list[bytes] = []

        def leave() -> None:
            self._leave(request, choices)

        async def wait() -> None:
            first.append(await anext(written, b""))

        async def whole() -> AsyncGenerator[bytes]:
            async with aclosing(written):
                yield first[0]
                async for piece in written:
                    yield piece

        try:
            if not await unless_gone(request.receive, wait()):
                raise ClientDisconnect
        except BaseException:
            await written.aclose()
            leave()
            raise
        return EventStream(whole(), ping=b"", kind=kind, ping_s=self._ping_s, close=leave)

    def _choices(self, request: Request, wishes: Sequence[Wish]) -> Choices:
        """Has the engine take a request on."""
        names = current()
        seeded = [_with_seed(wish, names.seed, number) for number, wish in enumerate(wishes)]
        # Whoever makes the same answer again has to write it in the same order.
        made = Choices(
            self.engine,
            seeded,
            request.state.request_id,
            at_once=1 if names.seeded else AT_ONCE,
            salt=request.state.salt,
            nbytes=request.state.nbytes,
        )
        self._open.add(made)
        return made

    def _leave(self, request: Request, choices: Choices) -> None:
        """The client has its answers, or wants none."""
        first, done = choices.first, [one.completion for one in choices.done.values()]
        facts: dict[str, Any] = {"queue_s": round(first.queue_s, 4), "prompt_tokens": first.prompt_tokens}
        if done:
            facts |= {"completion_tokens": sum(len(one.token_ids) for one in done)}
            facts |= {"prefill_s": round(done[0].prefill_s, 4), "decode_s": round(done[0].decode_s, 4)}
            facts |= {"finish_reason": done[0].finish_reason}
        elif first.phase != "over":
            facts["cancelled_in"] = first.phase
        request.state.facts = facts
        self._open.discard(choices)
        choices.cancel()


def _with_seed(wish: Wish, seed: int | None, number: int) -> Wish:
    """A wish with a seed, if it has none."""
    if wish.sampling.seed is not None or seed is None:
        return wish
    return replace(wish, sampling=replace(wish.sampling, seed=seed + number))

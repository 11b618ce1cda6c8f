"""What a server counts, for Prometheus, under the names that the field has for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from coterie.errors import EngineError
from coterie.generation.asked import Measured
from coterie.generation.speech import SPEECH_RATE
from coterie.server.demand import Demand
from coterie.server.logs import log_failure
from coterie.server.present import Layers, Present, Watched
from coterie.server.refusals import Refusal, refusal_of

if TYPE_CHECKING:
    from coterie.generation.completion import Completion
    from coterie.generation.speech import Speech
    from coterie.generation.tickets import Phase, Ticket

_WAITS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_LENGTHS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_FACTORS = (0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
_TOKENS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)


class Meters:
    """Counters of one server.

    Attributes:
        registry: Where they are; each server has its own.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._watching: tuple[Watched, Demand] | None = None
        self._first = Histogram(
            "coterie_time_to_first_token_seconds", "From a request's arrival to its first token",
            buckets=_WAITS, registry=registry,
        )  # fmt: skip
        self._each = Histogram(
            "coterie_time_per_output_token_seconds", "Seconds per token after the first",
            buckets=_TOKENS, registry=registry,
        )  # fmt: skip
        self._queue = Histogram(
            "coterie_request_queue_time_seconds", "From a request's arrival to the model's beginning with it",
            buckets=_WAITS, registry=registry,
        )  # fmt: skip
        self._whole = Histogram(
            "coterie_e2e_request_latency_seconds", "From a request's arrival to its last token",
            buckets=_WAITS, registry=registry,
        )  # fmt: skip
        self._prefill = Histogram(
            "coterie_request_prefill_time_seconds", "From the model's beginning with a request to its first token",
            buckets=_WAITS, registry=registry,
        )  # fmt: skip
        self._decode = Histogram(
            "coterie_request_decode_time_seconds", "From a request's first token to its last",
            buckets=_WAITS, registry=registry,
        )  # fmt: skip
        self._first_sound = Histogram(
            "coterie_time_to_first_audio_seconds", "From a request's arrival to the first sound of its answer",
            buckets=_WAITS, registry=registry,
        )  # fmt: skip
        self._factor = Histogram(
            "coterie_speech_real_time_factor", "Seconds that a second of speech took to make",
            buckets=_FACTORS, registry=registry,
        )  # fmt: skip
        self._speech = Counter("coterie_speech_seconds", "Seconds of speech in whole answers", registry=registry)
        self._prompts = Histogram(
            "coterie_request_prompt_tokens", "Tokens of a prompt", buckets=_LENGTHS, registry=registry
        )  # fmt: skip
        self._lengths = Histogram(
            "coterie_request_generation_tokens", "Tokens of an answer", buckets=_LENGTHS, registry=registry
        )  # fmt: skip
        self._prompt = Counter("coterie_prompt_tokens", "Tokens of answered prompts", registry=registry)
        self._generated = Counter("coterie_generation_tokens", "Tokens of whole answers", registry=registry)
        self._success = Counter(
            "coterie_request_success", "Requests answered", ["finished_reason"], registry=registry
        )  # fmt: skip
        self._failed = Counter("coterie_request_failed", "Requests that failed", ["code"], registry=registry)
        self._cancelled = Counter(
            "coterie_cancelled", "Requests whose client left, by where they were", ["phase"], registry=registry
        )  # fmt: skip
        self._answers = Counter("coterie_http_responses", "HTTP answers", ["path", "status"], registry=registry)

    def finished(self, ticket: Ticket, completion: Completion) -> None:
        """A request was answered."""
        queued, tokens = ticket.queue_s, len(completion.token_ids)
        self._queue.observe(queued)
        self._first.observe(queued + completion.prefill_s)
        self._whole.observe(queued + completion.prefill_s + completion.decode_s)
        self._prefill.observe(completion.prefill_s)
        self._decode.observe(completion.decode_s)
        self._prompts.observe(completion.prompt_tokens)
        self._lengths.observe(tokens)
        if tokens > 1:
            self._each.observe(completion.decode_s / (tokens - 1))
        self._prompt.inc(completion.prompt_tokens)
        self._generated.inc(tokens)
        self._success.labels(completion.finish_reason).inc()

    def spoken(self, ticket: Ticket, speech: Speech) -> None:
        """An answer was spoken."""
        seconds = len(speech.samples) / SPEECH_RATE
        self._speech.inc(seconds)
        if seconds:
            self._factor.observe(speech.seconds / seconds)
        if speech.first_s is not None:
            self._first_sound.observe(ticket.queue_s + speech.completion.prefill_s + speech.first_s)

    def failed(self, ticket: Ticket, error: BaseException) -> None:
        """A request that was taken on got no whole answer; where that is the server's doing, the log has it."""
        if isinstance(error, Measured):
            return  # no answer was wanted
        refusal = refusal_of(error)
        self._failed.labels(refusal.code or str(refusal.status)).inc()
        if refusal.status >= 500 and not isinstance(error, Refusal | EngineError):
            log_failure(ticket.name, error)

    def cancelled(self, phase: Phase) -> None:
        """A request's client left."""
        self._cancelled.labels(phase).inc()

    def answered(self, path: str, status: int) -> None:
        """An HTTP answer began.

        Args:
            path: Of the route, not what the client wrote: that could be anything.
            status: Its status.
        """
        self._answers.labels(path, str(status)).inc()

    def watch(self, engine: Watched) -> Demand:
        """From now on shows what an engine and its model are doing, too; returns what is asked of its experts."""
        if self._watching is None:
            runtime = engine.opened.runtime
            demand = Demand(runtime.source.num_experts)
            runtime.add_observer(demand)
            self.registry.register(Present(engine))
            self.registry.register(Layers(engine, demand))
            self._watching = (engine, demand)
        return self._watching[1]

    def look_away(self) -> None:
        """What is asked of the experts is counted no longer: whoever goes on with the model has no use for it."""
        if self._watching is not None:
            engine, demand = self._watching
            engine.opened.runtime.remove_observer(demand)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

"""What a server counts, for Prometheus, under the names that the field has for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coterie.errors import EngineError
from coterie.server.logs import log_failure
from coterie.server.refusals import Refusal, refusal_of

if TYPE_CHECKING:
    from coterie.generation.completion import Completion
    from coterie.generation.governor import Governor
    from coterie.generation.opened import OpenModel
    from coterie.generation.prefixes import Prefixes
    from coterie.generation.tickets import Phase, Ticket

_WAITS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_TOKENS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)


class Meters:
    """Counters of one server.

    Attributes:
        registry: Where they are; each server has its own.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
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
        if tokens > 1:
            self._each.observe(completion.decode_s / (tokens - 1))
        self._prompt.inc(completion.prompt_tokens)
        self._generated.inc(tokens)
        self._success.labels(completion.finish_reason).inc()

    def failed(self, ticket: Ticket, error: BaseException) -> None:
        """A request that was taken on got no whole answer; where that is the server's doing, the log has it."""
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

    def watch(self, engine: _Watched) -> None:
        """From now on shows what an engine and its model are doing, too."""
        self.registry.register(_Now(engine))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Watched(Protocol):
    """An engine, as far as it is watched."""

    governor: Governor
    prefixes: Prefixes

    @property
    def opened(self) -> OpenModel: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...


class _Now(Collector):
    """What is so at the moment, asked when somebody looks."""

    def __init__(self, engine: _Watched) -> None:
        self._engine = engine

    def describe(self) -> list[Metric]:
        """Nothing: what is shown does not depend on what is there."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The figures."""
        yield GaugeMetricFamily("coterie_num_requests_running", "Requests being served", value=self._engine.running)
        yield GaugeMetricFamily("coterie_num_requests_waiting", "Requests that wait", value=self._engine.waiting)
        yield from _shared_memory(self._engine.governor)
        yield from _prefixes(self._engine.prefixes)
        runtime = self._engine.opened.runtime
        stats = runtime.stats()
        total = stats.total
        for name, what, value in (
            ("coterie_expert_hit_rate", "Experts found in memory per expert asked for, since the start",
             total.hit_rate),
            ("coterie_expert_decode_hit_rate", "The same of decode steps alone", total.decode_hit_rate),
            ("coterie_expert_cache_bytes", "Bytes of the experts in memory", stats.resident_bytes),
            ("coterie_expert_cache_capacity_bytes", "Bytes that experts may take in memory", stats.capacity),
            ("coterie_experts_bytes", "Bytes of all experts of the model", stats.total_expert_bytes),
        ):  # fmt: skip
            yield GaugeMetricFamily(name, what, value=value)
        if runtime.plan is not None:
            yield GaugeMetricFamily(
                "coterie_memory_budget_bytes", "Ceiling for the whole process", value=runtime.plan.budget
            )
            yield GaugeMetricFamily(
                "coterie_kv_cache_reserved_bytes", "Bytes kept for keys and values", value=runtime.plan.kv_cache
            )
        for name, what, value in (
            ("coterie_experts_requested", "Experts that layers asked for", total.requested),
            ("coterie_expert_misses", "Of these, read from disk", total.misses),
            ("coterie_expert_bytes_read", "Bytes read for these", total.bytes_read),
            ("coterie_expert_read_wait_seconds", "Seconds that the model waited for reads", total.wait_s),
            ("coterie_expert_evictions", "Experts that made room for others", total.evictions),
            ("coterie_expert_absent", "Choices of experts that the store does not have", total.absent),
        ):  # fmt: skip
            yield CounterMetricFamily(name, what, value=value)


def _prefixes(prefixes: Prefixes) -> Iterator[Metric]:
    """What is kept of the beginnings of prompts, and what it is good for."""
    counts = prefixes.counts
    for name, what, nbytes in (
        ("", "Bytes that beginnings of prompts take", prefixes.nbytes),
        ("limit_", "Bytes that they may take now", prefixes.limit),
    ):
        yield GaugeMetricFamily(f"coterie_prefix_cache_{name}bytes", what, value=nbytes)
    for name, what, number in (
        ("queries", "Prompts that could have begun with what was kept", counts.prompts),
        ("hits", "Prompts that did", counts.hits),
        ("tokens", "Tokens of prompts that were not computed again", counts.tokens),
        ("saved_seconds", "What computing them took when it was done", counts.seconds),
    ):
        yield CounterMetricFamily(f"coterie_prefix_cache_{name}", what, value=number)


def _shared_memory(governor: Governor) -> Iterator[Metric]:
    """What requests take of the memory that they share."""
    for name, what, nbytes in (
        ("total", "Bytes that keys and values, pictures and sounds of requests may take together", governor.total),
        ("promised", "Bytes that running requests can come to need", governor.promised),
        ("held", "Bytes that running requests have room for now", governor.held),
        ("lent", "Bytes of these that were taken from experts", governor.lent),
    ):
        if nbytes is not None:
            yield GaugeMetricFamily(f"coterie_kv_cache_{name}_bytes", what, value=nbytes)

"""What an engine and its model are doing at the moment, for Prometheus: asked when somebody looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coterie.plan.machine import process_memory

if TYPE_CHECKING:
    from coterie.generation.governor import Governor
    from coterie.generation.opened import OpenModel
    from coterie.generation.prefix_copy import PrefixCopy
    from coterie.generation.prefixes import Prefixes
    from coterie.plan.budget import MemoryPlan
    from coterie.server.demand import Demand
    from coterie.spec import BankKey

_LAYER = ("component", "layer", "bank")


class Watched(Protocol):
    """An engine, as far as it is watched."""

    governor: Governor
    prefixes: Prefixes

    @property
    def opened(self) -> OpenModel:
        """Its model."""
        ...

    @property
    def running(self) -> int:
        """Requests that the model works for."""
        ...

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        ...


class Present(Collector):
    """The figures of an engine, and of its model as a whole.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Watched) -> None:
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
            ("coterie_expert_cache_experts", "Experts in memory", stats.resident_experts),
            ("coterie_experts_bytes", "Bytes of all experts of the model", stats.total_expert_bytes),
            ("coterie_memory_process_bytes", "Memory that the process holds now", process_memory().total),
        ):  # fmt: skip
            yield GaugeMetricFamily(name, what, value=value)
        if runtime.plan is not None:
            yield from _budget(runtime.plan)
        for name, what, value in (
            ("coterie_experts_requested", "Experts that layers asked for", total.requested),
            ("coterie_expert_misses", "Of these, read from disk", total.misses),
            ("coterie_expert_bytes_read", "Bytes read for these", total.bytes_read),
            ("coterie_expert_read_wait_seconds", "Seconds that the model waited for reads", total.wait_s),
            ("coterie_expert_evictions", "Experts that made room for others", total.evictions),
            ("coterie_expert_absent", "Choices of experts that the store does not have", total.absent),
            ("coterie_experts_left_out", "Experts that decode steps left out instead of reading them", total.left_out),
            ("coterie_expert_bytes_not_read", "Bytes of these", total.bytes_not_read),
            ("coterie_expert_prefetch", "Experts read because they were predicted", stats.prefetch_issued),
            ("coterie_expert_prefetch_used", "Of these, asked for before they left", stats.prefetch_used),
            (
                "coterie_expert_prefetch_wasted",
                "Of those that were predicted, evicted without having been asked for",
                stats.prefetch_wasted,
            ),
            ("coterie_expert_prefetch_bytes", "Bytes read for predictions", stats.prefetch_bytes),
            ("coterie_expert_warmed", "Experts read because a profile names them", stats.warmed),
            ("coterie_expert_warmed_used", "Of these, asked for before they left", stats.warmed_used),
        ):  # fmt: skip
            yield CounterMetricFamily(name, what, value=value)
        computed = CounterMetricFamily(
            "coterie_computed_tokens", "Tokens that went through the model", labels=("component", "phase")
        )
        for phase, tokens in (("prefill", stats.prefill_tokens), ("decode", stats.decode_tokens)):
            for component, count in tokens.items():
                computed.add_metric((component, phase), count)
        yield computed


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
    if prefixes.copy is not None:
        yield from _prefix_copy(prefixes.copy)


def _prefix_copy(copy: PrefixCopy) -> Iterator[Metric]:
    """What is kept of them on disk."""
    counts = copy.counts
    for name, what, value in (
        ("bytes", "Bytes that beginnings of prompts take on disk", copy.nbytes),
        ("limit_bytes", "Bytes that they may take there", copy.limit),
        ("paused", "Whether nothing is written there for now, after a failure", int(copy.paused)),
    ):
        yield GaugeMetricFamily(f"coterie_prefix_dir_{name}", what, value=value)
    for name, what, number in (
        ("read", "Pieces of prompts that were read from there", counts.read),
        ("read_bytes", "Their bytes", counts.bytes_read),
        ("written", "Pieces that were written there", counts.written),
        ("written_bytes", "Their bytes", counts.bytes_written),
        ("skipped", "Pieces that were not", counts.skipped),
        ("failed", "Writes and reads that failed", counts.failed),
        ("damaged", "Files that were not what was written", copy.damaged),
    ):
        yield CounterMetricFamily(f"coterie_prefix_dir_{name}", what, value=number)


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


def _budget(plan: MemoryPlan) -> Iterator[Metric]:
    yield GaugeMetricFamily("coterie_memory_budget_bytes", "Ceiling for the whole process", value=plan.budget)
    yield GaugeMetricFamily("coterie_kv_cache_reserved_bytes", "Bytes kept for keys and values", value=plan.kv_cache)
    parts = GaugeMetricFamily("coterie_memory_plan_bytes", "What the budget is divided into", labels=("part",))
    for part, nbytes in plan_parts(plan).items():
        parts.add_metric((part,), nbytes)
    yield parts


def plan_parts(plan: MemoryPlan) -> Mapping[str, int]:
    """Name → bytes of what a budget is divided into."""
    return {
        "dense": plan.process,
        "kv_cache": plan.kv_cache,
        "activations": plan.activations,
        "buffers": plan.io_buffers,
        "libraries": plan.libraries,
        "experts": plan.arena,
        "margin": plan.margin,
    }


class Layers(Collector):
    """The figures of each layer's experts.

    Args:
        engine: The engine.
        demand: What was asked of each expert.
    """

    def __init__(self, engine: Watched, demand: Demand) -> None:
        self._engine = engine
        self._demand = demand

    def describe(self) -> list[Metric]:
        """Nothing: what is shown does not depend on what is there."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The figures."""
        runtime = self._engine.opened.runtime
        stats, resident, demand = runtime.stats().layers, runtime.resident(), self._demand.banks()
        in_memory = GaugeMetricFamily("coterie_layer_expert_cache_experts", "Experts in memory", labels=_LAYER)
        for key, ids in resident.items():
            in_memory.add_metric(_labels(key), len(ids))
        yield in_memory
        for name, what, values in (
            ("experts_requested", "Experts that the layer asked for",
             {key: one.requested for key, one in stats.items()}),
            ("expert_misses", "Of these, read from disk", {key: one.misses for key, one in stats.items()}),
            ("expert_choices", "Choices of experts by tokens",
             {key: int(one.choices.sum()) for key, one in demand.items()}),
            ("decode_steps", "Decode steps", {key: one.steps for key, one in demand.items()}),
            ("decode_rows", "Sequences in these", {key: one.rows for key, one in demand.items()}),
            ("decode_expert_choices", "Choices of experts in these", {key: one.chosen for key, one in demand.items()}),
            ("decode_expert_union", "Distinct experts in these, added up over steps",
             {key: one.union for key, one in demand.items()}),
        ):  # fmt: skip
            family = CounterMetricFamily(f"coterie_layer_{name}", what, labels=_LAYER)
            for key, value in values.items():
                family.add_metric(_labels(key), value)
            yield family


def _labels(key: BankKey) -> tuple[str, str, str]:
    return (key.component, str(key.layer), key.bank)

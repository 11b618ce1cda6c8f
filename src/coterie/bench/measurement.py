"""Speed, hit rate and memory of one generation."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from coterie.bench.times import generate
from coterie.engine.runtime import Runtime
from coterie.errors import UsageError
from coterie.plan.machine import process_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One prompt and the tokens after it.

    Attributes:
        threads: Threads for compute.
        prompt_tokens: Tokens of the prompt.
        new_tokens: Tokens generated; the first belongs to the prompt's pass, each of the others to a decode step.
        prefill_s: Seconds until the first new token was there.
        step_s: Seconds of a decode step: median.
        step_quartiles_s: First and third quartile.
        decode_s: Seconds of all decode steps.
        prefill_bytes_read: Bytes of experts read during the prompt's pass.
        bytes_per_token: Bytes of experts read per decode step, mean, prefetches included.
        left_out_per_token: Experts left out instead of being read because of ``drop_cold``, per decode step, mean.
        prefetched_per_token: Experts read before they were asked for, per decode step, mean.
        prefetch_used: Share of these that were then asked for; None if there were none.
        prefetch_in_time: Share of these that were in memory when they were.
        prefetch_recall: Of the experts asked for that were not in memory before, the share whose reads had begun before
            they were asked for; None if there were none, or nothing was read early.
        hit_rate: Share of experts that decode steps found in memory; None if none was asked for.
        wait_s: Seconds of the decode steps that compute waited for reads.
        capacity: Bytes that experts may take in memory.
        total_expert_bytes: Bytes of all experts.
        memory: Bytes that the process holds at the end, anonymous and mapped.
    """

    threads: int
    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    step_s: float
    step_quartiles_s: tuple[float, float]
    decode_s: float
    prefill_bytes_read: int
    bytes_per_token: float
    left_out_per_token: float
    prefetched_per_token: float
    prefetch_used: float | None
    prefetch_in_time: float | None
    prefetch_recall: float | None
    hit_rate: float | None
    wait_s: float
    capacity: int
    total_expert_bytes: int
    memory: int

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens of the prompt per second."""
        return self.prompt_tokens / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second at the median step."""
        return 1 / self.step_s


def measure(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    new_tokens: int,
    *,
    seed: int | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Measurement:
    """Generates once and measures.

    Args:
        model: From :func:`coterie.load`.
        prompt: Token ids, int64 [1, T].
        new_tokens: At least 3, so that there are steps to take a median of.
        seed: Draw tokens instead of taking the likeliest.
        on_token: Told after each new token how many there are.

    Raises:
        UsageError: For fewer tokens.
        ContextLengthError: If the memory budget was made for less.
    """
    if new_tokens < 3:
        raise UsageError(f"A measurement takes at least 3 new tokens, not {new_tokens}.", got=new_tokens)
    runtime: Runtime = model.coterie
    start = runtime.stats()
    prefilled = start

    def note(count: int) -> None:
        nonlocal prefilled
        if count == 1:
            prefilled = runtime.stats()
        if on_token is not None:
            on_token(count)

    _, times = generate(model, prompt, new_tokens, seed=seed, on_token=note)
    after = runtime.stats()
    steps = times.steps_s
    low, _, high = statistics.quantiles(steps, n=4, method="inclusive")
    requested = after.total.requested - prefilled.total.requested
    prefetched = after.prefetch_issued - prefilled.prefetch_issued
    used = after.prefetch_used - prefilled.prefetch_used
    in_time = after.prefetch_in_time - prefilled.prefetch_in_time
    # Those that were read early but came late are misses.
    lacking = in_time + after.total.misses - prefilled.total.misses
    read = after.total.bytes_read - prefilled.total.bytes_read + after.prefetch_bytes - prefilled.prefetch_bytes
    return Measurement(
        threads=torch.get_num_threads(),
        prompt_tokens=prompt.shape[1],
        new_tokens=new_tokens,
        prefill_s=times.prefill_s,
        step_s=statistics.median(steps),
        step_quartiles_s=(low, high),
        decode_s=sum(steps),
        prefill_bytes_read=prefilled.total.bytes_read - start.total.bytes_read,
        bytes_per_token=read / len(steps),
        left_out_per_token=(after.total.left_out - prefilled.total.left_out) / len(steps),
        prefetched_per_token=prefetched / len(steps),
        prefetch_used=used / prefetched if prefetched else None,
        prefetch_in_time=in_time / prefetched if prefetched else None,
        prefetch_recall=used / lacking if prefetched and lacking else None,
        hit_rate=(after.total.hits - prefilled.total.hits) / requested if requested else None,
        wait_s=after.total.wait_s - prefilled.total.wait_s,
        capacity=after.capacity,
        total_expert_bytes=after.total_expert_bytes,
        memory=process_memory(exact=True).total,
    )

"""What a step's parts and the disk take on this machine, each by itself and both at once, in one process.

Arithmetic and reads share the machine: on two cores the copying and the interrupts of reads take time from arithmetic,
and arithmetic from them. What either takes while the other goes on bounds any engine that overlaps the two.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.raw_disk import raw_bandwidth, raw_bandwidth_to_new_memory

DEPTHS = (1, 2, 4, 8)
_ROUNDS = 3
_SECONDS = 0.3
_NEW_NBYTES = 256 << 20
_PROMPT = 32
_TOKENS = 16
_HIDDEN_BY_READS = ("experts", "waiting")


def measured_costs(model: Any, ids: list[int], store: Path) -> dict[str, object]:
    """Seconds per decode step and bytes per second of direct reads, alone and while the other goes on.

    Args:
        model: From :func:`coterie.load`, every expert in memory.
        ids: A prompt.
        store: What it was opened from.
    """
    import torch

    from coterie.bench import breakdown

    def step() -> dict[str, float]:
        parts = breakdown(model, torch.tensor([ids[:_PROMPT]]), _TOKENS).parts
        rest = sum(seconds for part, seconds in parts.items() if part not in _HIDDEN_BY_READS)
        return {"rest_s": rest, "experts_s": parts["experts"]}

    file = largest_shard(store)
    nbytes = max(model.coterie.source.record_nbytes.values())
    taken: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for number in range(_ROUNDS):
        for depth in DEPTHS:
            taken[depth].append(raw_bandwidth(file, nbytes, depth=depth, seconds=_SECONDS, seed=number))
    disk = {depth: statistics.median(values) for depth, values in taken.items()}
    best = max(disk, key=lambda depth: disk[depth])
    with ExitStack() as kept:
        into_new = [
            kept.enter_context(raw_bandwidth_to_new_memory(file, nbytes, depth=best, nbytes=_NEW_NBYTES, seed=number))
            for number in range(_ROUNDS)
        ]
    alone = step()
    with ThreadPoolExecutor(1) as pool:
        computed = pool.submit(step)
        rates = []
        while not computed.done():
            rates.append(raw_bandwidth(file, nbytes, depth=best, seconds=_SECONDS, seed=len(rates)))
        beside = computed.result()
    return {
        "disk": {str(depth): value for depth, value in disk.items()},
        "bandwidth": disk[best],
        "bandwidth_new": statistics.median(into_new),
        "alone": alone,
        "beside": beside,
        "bandwidth_beside": statistics.median(rates),
    }


def largest_shard(store: Path) -> Path:
    """A file of experts to read from."""
    return max(store.rglob("*.safetensors"), key=lambda path: path.stat().st_size if "experts" in path.parts else 0)

"""Attention of a turn over what came before it: without copies of keys and values, against transformers' own way.

With grouped-query attention several heads of the query share keys and values. Where there is a mask, transformers
repeats these for every head before it calls torch's kernel; Coterie hands them to the kernel as they are. The heads are
those of Qwen3-30B-A3B: 32, which share 4. Both must give the same bits.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import torch
from torch import nn

from bench_kernels import spread
from harness.machine import wait_until_quiet
from harness.options import options
from harness.paired import interleave
from harness.report import Report

HEADS, KEPT_HEADS, WIDTH = 32, 4, 128
LAYERS = 12
"""Caches that are gone through in turn, so that none is found in the processor's caches."""
STOCK, OURS = "transformers", "Coterie"
NOT_SLOWER = 1.03


class Attention(nn.Module):
    """All that a way of computing attention looks at in a layer."""

    num_key_value_groups = HEADS // KEPT_HEADS
    is_causal = True


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, default=49, help="of the turn (%(default)s)")
    parser.add_argument("--before", type=int, nargs="+", default=[55, 503, 2000, 8000], help="tokens before it")
    given = parser.parse_args()
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from coterie.kernels import GroupedAttention

    wait_until_quiet(given.wait_quiet)
    layers, rounds = (1, 2) if given.quick else (LAYERS, 15)
    report = Report("attention", "Attention of a turn", work=given.work_dir.parent, quick=given.quick)
    table = report.table(
        f"{given.tokens} tokens, {HEADS} heads that share {KEPT_HEADS}, bfloat16, {torch.get_num_threads()} threads; "
        f"{rounds} interleaved rounds, ms of a layer (quartiles):",
        ("tokens before", STOCK, OURS, f"{OURS} / {STOCK}"),
    )
    grouped, module = GroupedAttention(sdpa_attention_forward), Attention()
    grouped.serve(module)
    ways = {STOCK: sdpa_attention_forward, OURS: grouped}
    for before in given.before:
        mask = torch.ones(given.tokens, before + given.tokens, dtype=torch.bool).tril(before)[None, None]
        query = torch.randn(1, given.tokens, HEADS, WIDTH, dtype=torch.bfloat16).transpose(1, 2)
        kept = [
            torch.randn(2, 1, KEPT_HEADS, before + given.tokens, WIDTH, dtype=torch.bfloat16) for _ in range(layers)
        ]

        def through(way: str, query: torch.Tensor = query, kept: list = kept, mask: torch.Tensor = mask) -> float:
            began = time.perf_counter()
            for keys, values in kept:
                ways[way](module, query, keys, values, mask)
            return (time.perf_counter() - began) / len(kept)

        with torch.inference_mode():
            same = torch.equal(*(way(module, query, *kept[0], mask)[0] for way in ways.values()))
            timings = interleave({way: partial(through, way) for way in ways}, rounds)
        ratio = timings.ratio(OURS, STOCK)
        table.rows.append((str(before), *(spread(timings, way, 1e3) for way in ways), f"{ratio:.2f}"))
        report.values[str(before)] = timings.rounds
        report.require(f"after {before} tokens: the same bits", "yes" if same else "no", same)
        if not given.quick:
            report.require(f"after {before} tokens: not slower", f"{ratio:.2f}", ratio <= NOT_SLOWER)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

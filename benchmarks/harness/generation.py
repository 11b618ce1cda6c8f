"""Opens a model under a budget, generates, prints what it took as JSON: what benchmarks run in a process of its own.

Token ids are drawn from a seeded distribution, so that runs under different budgets compute the same tokens (their
logits are bit-identical) and route to the same experts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Decoding:
    """A greedy generation that is taken some steps at a time.

    Args:
        model: The model.
        prompt: Token ids [1, T].

    Attributes:
        tokens: Token ids so far, prompt excluded.
    """

    def __init__(self, model: Any, prompt: torch.Tensor) -> None:
        self._model = model
        self._kept: dict[str, Any] = {}
        self.tokens: list[int] = []
        self._step(prompt)

    def steps(self, count: int) -> float:
        """Takes so many decode steps; returns seconds per step."""
        began = time.perf_counter()
        for _ in range(count):
            self._step(self._next)
        return (time.perf_counter() - began) / count

    def _step(self, ids: torch.Tensor) -> None:
        import torch

        from harness.kept_cache import kept_cache

        with torch.inference_mode():
            out = self._model(ids, **self._kept, use_cache=True, logits_to_keep=1)
        self._kept = kept_cache(out)
        self._next = out.logits[:, -1:].argmax(-1)
        self.tokens.append(int(self._next))


def main() -> int:
    """Runs what the command line describes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="store, checkpoint, or bundled")
    parser.add_argument("--memory", help="budget; default: what the cgroup allows, less a margin")
    parser.add_argument("--max-context", type=int)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[64], help="lengths; the last is measured")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "The experts have")

    import torch

    from coterie.bench import generate
    from coterie.engine import load
    from coterie.plan.machine import process_memory

    began = time.perf_counter()
    model = load(given.model, memory=given.memory, max_context=given.max_context, threads=given.threads)
    load_s = time.perf_counter() - began
    draw = torch.Generator().manual_seed(1)
    vocabulary = model.config.get_text_config().vocab_size
    prompts = [torch.randint(16, vocabulary, (1, length), generator=draw) for length in given.prompt_tokens]
    for prompt in prompts[:-1]:
        generate(model, prompt, 4, seed=2)
    tokens, times = generate(model, prompts[-1], given.new_tokens, seed=2)
    stats = model.coterie.stats()
    plan = model.coterie.plan
    print(
        json.dumps(
            {
                "load_s": load_s,
                "prefill_s": times.prefill_s,
                "step_s": statistics.median(times.steps_s),
                "decode_s": sum(times.steps_s),
                "decode_steps": len(times.steps_s),
                "tokens": tokens,
                "plan": {name: getattr(plan, name) for name in plan.__dataclass_fields__},
                "capacity": stats.capacity,
                "total_expert_bytes": stats.total_expert_bytes,
                "decode_hit_rate": stats.total.decode_hit_rate,
                "bytes_read": stats.total.bytes_read,
                "wait_s": stats.total.wait_s,
                "held": process_memory(exact=True).total,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

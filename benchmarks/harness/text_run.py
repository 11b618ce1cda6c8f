"""A text goes through a model in a process of its own, token by token: what that takes, and what it finds in memory.

The text is not generated but given, so every budget and every machine computes the same tokens. First a prompt and some
tokens after it fill the cache from nothing. Once the cache has its memory, the prompt that follows in the text and the
tokens after it are measured. With ``--to-the-peak``, prompts of many lengths, up to the longest that is provided for,
then bring memory to its peak, with what is compiled for their shapes. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LENGTHS = (*range(3, 120, 3), *range(130, 700, 57))
"""Tokens of the prompts that bring memory to its peak, beside the longest one: an expert gets any number of them."""


class Reader:
    """A model that a text goes through.

    Args:
        model: The model.
        ids: The text's tokens [T].
    """

    def __init__(self, model: Any, ids: torch.Tensor) -> None:
        self._model = model
        self._ids = ids
        self._place = 0

    def read(self, prompt: int, tokens: int) -> tuple[float, list[float]]:
        """Reads a prompt and then tokens one by one, from where the last one ended.

        Returns:
            Seconds of the prompt, and of each token.
        """
        place, self._place = self._place, self._place + prompt + tokens
        ids = self._ids[place : self._place]
        kept, first = self._pass(ids[:prompt], {})
        seconds = []
        for number in range(prompt, len(ids)):
            kept, step = self._pass(ids[number : number + 1], kept)
            seconds.append(step)
        return first, seconds

    def prompt(self, length: int) -> None:
        """Reads a prompt of a length, from the beginning of the text, repeated if need be."""
        repeated = self._ids.repeat(-(-length // len(self._ids)))
        self._pass(repeated[:length], {})

    def _pass(self, ids: torch.Tensor, kept: dict[str, Any]) -> tuple[dict[str, Any], float]:
        import torch

        from harness.kept_cache import kept_cache

        began = time.perf_counter()
        with torch.inference_mode():
            out = self._model(ids[None], **kept, use_cache=True, logits_to_keep=1)
        return kept_cache(out), time.perf_counter() - began


def main() -> int:
    """Runs what the command line describes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="store, checkpoint, or bundled")
    parser.add_argument("text", type=Path, help="a UTF-8 text")
    parser.add_argument("--memory", required=True)
    parser.add_argument("--max-context", type=int, required=True)
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="tokens of the text that are left out")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--settle-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--to-the-peak", action="store_true", help="read prompts of many lengths at the end")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "The experts have")

    import torch

    from coterie.generation.opened import OpenModel
    from coterie.hf.tokenizer import encode_text
    from coterie.plan.machine import process_memory
    from coterie.spec.opening import Opening
    from peers.coterie_driver import wait_for_memory

    opened = OpenModel.open(given.model, Opening(memory=given.memory, max_context=given.max_context))
    runtime = opened.model.coterie
    loaded = process_memory(exact=True).total
    ids = encode_text(opened.processors.tokenizer, given.text.read_text(encoding="utf-8"))[given.skip :]
    needed = 2 * given.prompt_tokens + given.settle_tokens + given.tokens
    if len(ids) < needed:
        raise SystemExit(f"{given.text} has {len(ids)} tokens after the first {given.skip}; {needed} are needed.")
    reader = Reader(opened.model, torch.tensor(ids))
    cold_s, _ = reader.read(given.prompt_tokens, given.settle_tokens)
    wait_for_memory(runtime)
    prompt_s, _ = reader.read(given.prompt_tokens, 0)
    before = runtime.stats()
    _, steps = reader.read(1, given.tokens)
    after = runtime.stats()
    if given.to_the_peak:
        for length in (*(length for length in LENGTHS if length < given.max_context), given.max_context):
            reader.prompt(length)
    requested = after.total.requested - before.total.requested
    read = after.total.bytes_read - before.total.bytes_read + after.prefetch_bytes - before.prefetch_bytes
    print(
        json.dumps(
            {
                "loaded": loaded,
                "capacity": after.capacity,
                "committed": runtime.cache.stats().committed_bytes,
                "cold_prompt_s": cold_s,
                "prompt_s": prompt_s,
                "steps_s": steps,
                "hit_rate": (after.total.hits - before.total.hits) / requested,
                "read_per_token": read / (given.tokens + 1),
                "held": process_memory(exact=True).total,
            }
        )
    )
    runtime.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Sequences that are decoded greedily, each by itself or all in one batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch


class Decoded:
    """Sequences that take their steps together.

    Args:
        model: The model.
        caches: The key-value cache of each sequence, all of one length; they are copied.
        ids: The next token of each.

    Attributes:
        logits: Of the last step, [rows, vocabulary].
    """

    def __init__(self, model: Any, caches: Sequence[Any], ids: torch.Tensor) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache()
        for number, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
            keys, values = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("keys", "values"))
            self._cache.update(keys, values, number)
        self._ids = ids
        self.logits = torch.empty(0)

    def step(self) -> None:
        """Takes one step of every sequence."""
        with torch.inference_mode():
            self.logits = self._model(self._ids, past_key_values=self._cache, use_cache=True).logits[:, -1]
        self._ids = self.logits.argmax(-1, keepdim=True)


class Group:
    """The same sequences twice: in one batch, and each by itself.

    Args:
        model: The model.
        prompts: Token ids [rows, T].
    """

    def __init__(self, model: Any, prompts: torch.Tensor) -> None:
        from harness.kept_cache import kept_cache

        caches, ids = [], []
        for prompt in prompts.split(1):
            with torch.inference_mode():
                made = model(prompt, use_cache=True, logits_to_keep=1)
            caches.extend(kept_cache(made).values())
            ids.append(made.logits[:, -1].argmax(-1, keepdim=True))
        self._together = [Decoded(model, caches, torch.cat(ids))]
        self._alone = [Decoded(model, [cache], one) for cache, one in zip(caches, ids, strict=True)]

    def together(self, count: int) -> float:
        """Seconds of one step of all rows in a batch."""
        return _seconds(self._together, count)

    def alone(self, count: int) -> float:
        """Seconds of one step of each row, one after the other."""
        return _seconds(self._alone, count)

    def same(self) -> bool:
        """Whether the logits of the last steps have the same bits; both have taken as many."""
        return torch.equal(self._together[0].logits, torch.cat([one.logits for one in self._alone]))


def _seconds(sequences: Sequence[Decoded], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        for one in sequences:
            one.step()
    return (time.perf_counter() - began) / count

"""How the next token is chosen: the caller's wishes on top of the model's generation config."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coterie.errors import UsageError

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What a caller may say about generation; None leaves it to the model's generation config.

    Attributes:
        max_new_tokens: The most tokens to generate.
        temperature: Divides the logits; above 0.
        top_p: Smallest probability mass that is sampled from, in (0, 1].
        top_k: Number of most probable tokens that are sampled from; 0 for all.
        seed: Makes sampling repeatable, for the same machine, threads and versions.
        greedy: True takes the most probable token, False samples. None: samples if temperature, top_p or top_k is
            given, else as the generation config says.

    Raises:
        UsageError: If a value is out of range, or greedy decoding is asked for together with a way of sampling.
    """

    max_new_tokens: int = 128
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    greedy: bool | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if self.temperature is not None and not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UsageError(
                f"The temperature must be above 0, not {self.temperature}.",
                advice="Ask for greedy decoding to always take the most probable token.",
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.top_k is not None and self.top_k < 0:
            raise UsageError(f"top_k must not be negative, as {self.top_k} is.", advice="0 samples from all tokens.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"The seed must be from 0 to 2**63 - 1, not {self.seed}.")
        if self.greedy and self._shapes:
            raise UsageError(
                f"Greedy decoding does not use {self._shapes[0]}.", advice="Leave one of them out.", got=self._shapes
            )

    @property
    def _shapes(self) -> list[str]:
        return [name for name in ("temperature", "top_p", "top_k") if getattr(self, name) is not None]

    def generation_config(self, base: GenerationConfig) -> GenerationConfig:
        """A copy of the model's generation config with these wishes applied."""
        config = copy.deepcopy(base)
        config.max_new_tokens = self.max_new_tokens
        if self.greedy is not None:
            config.do_sample = not self.greedy
        elif self._shapes:
            config.do_sample = True
        for name in ("temperature", "top_p", "top_k"):
            # What a greedy search would not use is left out: transformers remarks on it.
            wish = getattr(self, name) if config.do_sample else None
            if wish is not None or not config.do_sample:
                setattr(config, name, wish)
        return config

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Inside, torch's random numbers come from the seed; afterwards they go on as if nothing had been."""
        if self.seed is None:
            yield
            return
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            yield

"""How the next token is chosen: the caller's wishes on top of the model's generation config."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coterie.errors import UsageError

if TYPE_CHECKING:
    from transformers import GenerationConfig


_SHAPES = ("temperature", "top_p", "top_k", "min_p")
_IDLE = {"temperature": (0,), "top_p": (1,), "top_k": (0, -1), "min_p": (0,)}
"""Values of these that shape nothing, and may be said where nothing is sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What a caller may say about generation; None leaves it to the model's generation config.

    Attributes:
        max_new_tokens: The most tokens to generate; None (or -1) goes on until the model ends or there is no more room.
        temperature: Divides the logits; 0 always takes the most probable token.
        top_p: Smallest probability mass that is sampled from, in (0, 1].
        top_k: Number of most probable tokens that are sampled from; 0 (or -1) for all.
        min_p: Tokens below this share of the most probable one's probability are not sampled, in [0, 1].
        repetition_penalty: Divides the scores of tokens that were there before; 1 for none.
        stop: Texts that end the answer. They are no part of its text.
        seed: Makes sampling repeatable, for the same machine, threads and versions; -1 is as None.
        greedy: True takes the most probable token, False samples. None: samples if temperature, top_p, top_k or min_p
            is given, else as the generation config says.

    Raises:
        UsageError: If a value is out of range, or greedy decoding is asked for together with a way of sampling.
    """

    max_new_tokens: int | None = 128
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    greedy: bool | None = None

    def __post_init__(self) -> None:
        self._check_ranges()
        if self.seed is not None and not -1 <= self.seed < 2**63:
            raise UsageError(f"The seed must be from 0 to 2**63 - 1, not {self.seed}.", advice="-1 is one by chance.")
        if self.greedy and self._shapes:
            raise UsageError(
                f"Greedy decoding does not use {self._shapes[0]}.", advice="Leave one of them out.", got=self._shapes
            )
        if self.greedy is False and self.temperature == 0:
            raise UsageError("A temperature of 0 does not sample.", advice="Leave one of them out.")
        # What other tools write for "none" means none here as well.
        for name, none in (("max_new_tokens", None), ("seed", None), ("top_k", 0)):
            if getattr(self, name) == -1:
                object.__setattr__(self, name, none)

    def _check_ranges(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1 and self.max_new_tokens != -1:
            raise UsageError(
                f"max_new_tokens must be at least 1, not {self.max_new_tokens}.",
                advice="-1 goes on until the model ends.",
            )
        if self.temperature is not None and not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UsageError(
                f"temperature must be 0 or above, not {self.temperature}.",
                advice="0 always takes the most probable token.",
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1, not {self.top_p}.", advice="1 leaves nothing out.")
        if self.top_k is not None and self.top_k < -1:
            raise UsageError(f"top_k must not be negative, as {self.top_k} is.", advice="0 samples from all tokens.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p must be from 0 to 1, not {self.min_p}.", advice="0 leaves nothing out.")
        penalty = self.repetition_penalty
        if penalty is not None and not (penalty > 0 and math.isfinite(penalty)):
            raise UsageError(f"repetition_penalty must be above 0, not {penalty}.", advice="1 is none.")
        if not all(self.stop):
            raise UsageError("A text that ends the answer must not be empty.", advice="Leave it out.")

    @property
    def _shapes(self) -> list[str]:
        """What was said that only sampling uses."""
        said = ((name, getattr(self, name)) for name in _SHAPES)
        return [name for name, value in said if value is not None and value not in _IDLE[name]]

    def unused(self, base: GenerationConfig) -> tuple[str, ...]:
        """Names of what was said and has no effect, because nothing is sampled.

        Args:
            base: The model's generation config.
        """
        if self.generation_config(base).do_sample:
            return ()
        return (*self._shapes, *(("seed",) if self.seed is not None else ()))

    def generation_config(self, base: GenerationConfig) -> GenerationConfig:
        """A copy of the model's generation config with these wishes applied."""
        config = copy.deepcopy(base)
        config.max_new_tokens = self.max_new_tokens
        if self.greedy is not None:
            config.do_sample = not self.greedy
        elif self.temperature == 0:
            config.do_sample = False
        elif any(getattr(self, name) is not None for name in _SHAPES):
            config.do_sample = True
        for name in _SHAPES:
            # What a greedy search would not use is left out: transformers remarks on it.
            wish = getattr(self, name) if config.do_sample else None
            if wish is not None or not config.do_sample:
                setattr(config, name, wish if wish is None or name == "top_k" else float(wish))
        if self.repetition_penalty is not None:
            config.repetition_penalty = float(self.repetition_penalty)
        return config

"""How the next token is chosen: the caller's wishes on top of the model's generation config."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coterie.errors import UsageError
from coterie.generation.grammar import Grammar

if TYPE_CHECKING:
    from transformers import GenerationConfig


MOST_LOGPROBS = 20
"""Alternatives of a token that are told."""
MOST_BIASED = 1024
"""Tokens that can be made more or less likely."""
MOST_STOP_IDS = 128

_SHAPES = ("temperature", "top_p", "top_k", "min_p", "typical_p")
_IDLE = {"temperature": (0,), "top_p": (1,), "top_k": (0, -1), "min_p": (0,), "typical_p": (1,)}
"""Values of these that shape nothing, and may be said where nothing is sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What a caller may say about generation; None leaves it to the model's generation config.

    Attributes:
        max_new_tokens: The most tokens to generate; None (or -1) goes on until the model ends or there is no more room.
            0 only reads the prompt, for ``prompt_logprobs``.
        temperature: Divides the logits; 0 always takes the most probable token.
        top_p: Smallest probability mass that is sampled from, in (0, 1].
        top_k: Number of most probable tokens that are sampled from; 0 (or -1) for all.
        min_p: Tokens below this share of the most probable one's probability are not sampled, in [0, 1].
        typical_p: Mass of the tokens whose surprise is nearest to what is to be expected, in (0, 1].
        repetition_penalty: Divides the scores of tokens that were there before, prompt included; 1 for none.
        presence_penalty: Taken from the scores of tokens that were generated before, from -2 to 2.
        frequency_penalty: The same as many times as they were, from -2 to 2.
        logit_bias: Token id → what is added to its score, from -100 to 100.
        min_new_tokens: Before so many tokens, none ends the answer. Texts of ``stop`` do.
        stop: Texts that end the answer. They are no part of its text.
        stop_token_ids: Tokens that end the answer, beside the model's own. Their text, if they have any, is part of it.
        ignore_eos: Whether the model's own end tokens end nothing.
        seed: Makes sampling repeatable, for the same machine, threads and versions; -1 is as None.
        greedy: True takes the most probable token, False samples. None: samples if temperature, top_p, top_k, min_p or
            typical_p is given, else as the generation config says.
        logprobs: Tells the log probability of every new token, with those of so many of the most probable ones.
        prompt_logprobs: The same of every token of the prompt but the first.
        grammar: The form that the answer has to have.

    Raises:
        UsageError: If a value is out of range, or two exclude each other. Fact ``field``.
    """

    max_new_tokens: int | None = 128
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    greedy: bool | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        self._check_lengths()
        self._check_ranges()
        self._check_scores()
        self._check_together()
        # What other tools write for "none" means none here as well.
        for name, none in (("max_new_tokens", None), ("seed", None), ("top_k", 0)):
            if getattr(self, name) == -1:
                object.__setattr__(self, name, none)

    def _check_lengths(self) -> None:
        most, least = self.max_new_tokens, self.min_new_tokens
        if most is not None and most < 1 and most != -1 and not (most == 0 and self.prompt_logprobs is not None):
            raise _wrong("max_new_tokens", f"must be at least 1, not {most}", "-1 goes on until the model ends.")
        if least is not None and (least < 0 or (most is not None and most != -1 and least > most)):
            raise _wrong("min_new_tokens", f"must be from 0 to max_new_tokens, not {least}", "0 holds nothing back.")
        if not all(self.stop):
            raise UsageError("A text that ends the answer must not be empty.", advice="Leave it out.", field="stop")
        if len(self.stop_token_ids) > MOST_STOP_IDS or any(one < 0 for one in self.stop_token_ids):
            raise _wrong("stop_token_ids", f"must be up to {MOST_STOP_IDS} ids from 0 on", "Leave some out.")

    def _check_ranges(self) -> None:
        if self.temperature is not None and not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise _wrong("temperature", f"must be 0 or above, not {self.temperature}",
                         "0 always takes the most probable token.")  # fmt: skip
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise _wrong(name, f"must be above 0 and at most 1, not {value}", "1 leaves nothing out.")
        if self.top_k is not None and self.top_k < -1:
            raise _wrong("top_k", f"must not be negative, as {self.top_k} is", "0 samples from all tokens.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise _wrong("min_p", f"must be from 0 to 1, not {self.min_p}", "0 leaves nothing out.")
        if self.seed is not None and not -1 <= self.seed < 2**63:
            raise UsageError(f"The seed must be from 0 to 2**63 - 1, not {self.seed}.", advice="-1 is one by chance.",
                             field="seed")  # fmt: skip

    def _check_scores(self) -> None:
        penalty = self.repetition_penalty
        if penalty is not None and not (penalty > 0 and math.isfinite(penalty)):
            raise _wrong("repetition_penalty", f"must be above 0, not {penalty}", "1 is none.")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not -2 <= value <= 2:
                raise _wrong(name, f"must be from -2 to 2, not {value}", "0 is none.")
        if len(self.logit_bias) > MOST_BIASED:
            raise _wrong("logit_bias", f"must name at most {MOST_BIASED} tokens, not {len(self.logit_bias)}",
                         "Leave some out.")  # fmt: skip
        for token, bias in self.logit_bias.items():
            if token < 0 or not -100 <= bias <= 100:
                raise _wrong("logit_bias", f"must be from -100 to 100 for ids from 0 on, not {bias} for {token}",
                             "-100 rules a token out.")  # fmt: skip
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MOST_LOGPROBS:
                raise _wrong(name, f"must be from 0 to {MOST_LOGPROBS}, not {value}",
                             "0 tells those of the tokens that came.")  # fmt: skip

    def _check_together(self) -> None:
        if self.greedy and self._shapes:
            raise UsageError(
                f"Greedy decoding does not use {self._shapes[0]}.", advice="Leave one of them out.", got=self._shapes,
                field=self._shapes[0],
            )  # fmt: skip
        if self.greedy is False and self.temperature == 0:
            raise UsageError("A temperature of 0 does not sample.", advice="Leave one of them out.",
                             field="temperature")  # fmt: skip
        if self.grammar is not None and (self.ignore_eos or self.min_new_tokens):
            name = "ignore_eos" if self.ignore_eos else "min_new_tokens"
            raise UsageError(f"{name} cannot be kept to together with a form that says where the answer ends.",
                             advice="Leave one of them out.", field=name)  # fmt: skip

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

    def ends(self, own: Sequence[int]) -> list[int] | None:
        """The tokens that end an answer; None if none does.

        Args:
            own: The model's.
        """
        return list(dict.fromkeys((*(() if self.ignore_eos else own), *self.stop_token_ids))) or None

    def generation_config(self, base: GenerationConfig) -> GenerationConfig:
        """A copy of the model's generation config with these wishes applied, but for what ends an answer."""
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
        if self.min_new_tokens is not None:
            config.min_new_tokens = self.min_new_tokens
        return config


def _wrong(name: str, what: str, advice: str) -> UsageError:
    return UsageError(f"{name} {what}.", advice=advice, field=name)

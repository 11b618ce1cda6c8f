"""How tokens are chosen, and what is told of them. What a request leaves out is as the model's files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from coterie.generation.sampling import MOST_BIASED, MOST_LOGPROBS, MOST_STOP_IDS, Sampling
from coterie.profiles.facts import MAX_NAME
from coterie.server.schemas.fields import MOST_TOKENS, Fields, ModelName, Off, StopText, StopTexts
from coterie.server.schemas.forms import ResponseFormat

MOST_CHOICES = 8
"""Answers to one prompt."""

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(max_length=MOST_STOP_IDS)]
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
"""The id of a token, as JSON has keys."""
Biases = Annotated[dict[TokenName, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASED)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(gt=0, le=1)]
Logprobs = Annotated[int, Field(ge=0, le=MOST_LOGPROBS)]


class SamplingFields(Fields):
    """How tokens are chosen, as far as all requests may say it."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None

    def sampling(self, *, most: int | None, stop: Sequence[str] = (), **more: Any) -> Sampling:
        """The same for the engine.

        Args:
            most: New tokens; None until the model ends or there is no more room.
            stop: Texts that end the answer.
            **more: What else there is.
        """
        return Sampling(
            max_new_tokens=most, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, stop=tuple(stop),
            **more,
        )  # fmt: skip


class StreamOptions(Fields):
    """What a stream has besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: Off = None


class CoterieFields(Fields):
    """What no other server has."""

    provenance: bool | None = None
    """Whether the answer says what experts were read for it."""
    domain: Annotated[str, Field(min_length=1, max_length=MAX_NAME)] | None = None
    """What the request is about, for the profile that the server records."""


class OpenAISamplingFields(SamplingFields):
    """What both of OpenAI's ways of asking have, with what other servers add to it."""

    model: ModelName | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_progress: bool | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-1, lt=2**63)] | None = None
    stop: StopText | StopTexts | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Share | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    """Whom the caller asks for; nothing is kept of it."""
    coterie: CoterieFields | None = None

    def wishes(self, most: int | None, **more: Any) -> Sampling:
        """How tokens are chosen.

        Args:
            most: New tokens.
            **more: What else there is.
        """
        return self.sampling(
            most=most, stop=[self.stop] if isinstance(self.stop, str) else self.stop or (), seed=self.seed,
            min_p=self.min_p, typical_p=self.typical_p, repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0, presence_penalty=self.presence_penalty or 0.0,
            logit_bias=_by_id(self.logit_bias or {}), min_new_tokens=self.min_tokens,
            stop_token_ids=tuple(self.stop_token_ids or ()), ignore_eos=bool(self.ignore_eos),
            grammar=None if self.response_format is None else self.response_format.grammar, **more,
        )  # fmt: skip

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def wants_provenance(self) -> bool:
        """Whether the answer says what experts were read for it."""
        return self.coterie is not None and bool(self.coterie.provenance)

    @property
    def domain(self) -> str | None:
        """What it is about, for the profile that the server records."""
        return None if self.coterie is None else self.coterie.domain

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def _by_id(biases: Mapping[str, float]) -> dict[int, float]:
    return {int(name): bias for name, bias in biases.items()}


def of_choice(sampling: Sampling, number: int) -> Sampling:
    """How tokens of one of several answers are chosen: each has a seed of its own, the first the one that was said.

    Args:
        sampling: As it was asked.
        number: Which answer, from 0 on.
    """
    return sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + number) % 2**63)

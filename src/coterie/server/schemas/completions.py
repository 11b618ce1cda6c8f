"""``/v1/completions``, ``/tokenize`` and ``/detokenize``: what may be asked."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from coterie.server.refusals import Refusal
from coterie.server.schemas.chat import LONGEST_TEXT
from coterie.server.schemas.fields import MOST_TOKENS, Fields, NotYet, One
from coterie.server.schemas.sampling import Logprobs, OpenAISamplingFields

MOST_IDS = 1 << 17

MOST_PROMPTS = 128
"""Prompts in one request; answers to all of them together."""

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MOST_IDS)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
IdLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS)]


def _kind(value: Any) -> str:
    """What a prompt is, by what it begins with."""
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else None
    return "texts" if isinstance(first, str) else "lists" if isinstance(first, list) else "ids"


Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[IdLists, Tag("lists")],
    Discriminator(_kind),
]


class CompletionRequest(OpenAISamplingFields):
    """A text, or its tokens, that is to be continued; or several."""

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = 16
    echo: bool | None = None
    logprobs: Logprobs | None = None
    best_of: One = None
    suffix: NotYet = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise Refusal(400, "max_tokens must be at least 1, but with echo.", param="max_tokens")
        if self.choices * len(self.prompts) > MOST_PROMPTS:
            raise Refusal(400, f"n: a request has {MOST_PROMPTS} answers at most in all.", param="n")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one after the other."""
        value = self.prompt
        if isinstance(value, str):
            return [value]
        return [value] if isinstance(value[0], int) else [*value]


class TokenizeRequest(Fields):
    """A text whose tokens are wanted."""

    content: Text
    add_special: bool = False


class DetokenizeRequest(Fields):
    """Tokens whose text is wanted."""

    tokens: Annotated[list[TokenId], Field(max_length=MOST_IDS)]

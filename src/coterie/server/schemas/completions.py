"""``/v1/completions``, ``/tokenize`` and ``/detokenize``: what may be asked."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from coterie.server.schemas.chat import LONGEST_TEXT
from coterie.server.schemas.fields import Fields, NotYet, Off, One, OpenAISamplingFields, Tokens

MOST_IDS = 1 << 17

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MOST_IDS)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]


def _text_or_ids(value: Any) -> str:
    return "ids" if isinstance(value, list) else "text"


class CompletionRequest(OpenAISamplingFields):
    """A text, or its tokens, that is to be continued."""

    prompt: Annotated[Annotated[Text, Tag("text")] | Annotated[TokenIds, Tag("ids")], Discriminator(_text_or_ids)]
    max_tokens: Tokens | None = 16
    echo: Off = None
    logprobs: NotYet = None
    best_of: One = None
    suffix: NotYet = None


class TokenizeRequest(Fields):
    """A text whose tokens are wanted."""

    content: Text
    add_special: bool = False


class DetokenizeRequest(Fields):
    """Tokens whose text is wanted."""

    tokens: Annotated[list[TokenId], Field(max_length=MOST_IDS)]

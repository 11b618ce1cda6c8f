"""What a model is asked: which tokens of which texts, in windows of what size."""

from __future__ import annotations

from collections.abc import Sequence

from coterie.errors import UsageError
from coterie.evaluate.greedy import Prompted
from coterie.evaluate.subject import Subject
from coterie.evaluate.texts import Text, check_same_tokens, encode
from coterie.hf.context import model_context

DEFAULT_CONTEXT = 512
"""Input tokens of a window where the caller states none and the model allows them; llama.cpp's default."""


def input_tokens(subject: Subject, full: Subject | None, wanted: int | None) -> int:
    """Input tokens of a window, none more than either model was made for."""
    most = most_tokens(subject, full)
    if wanted is None:
        return DEFAULT_CONTEXT if most is None else min(DEFAULT_CONTEXT, most)
    if wanted < 1:
        raise UsageError(f"context must be at least 1 token, not {wanted}.", got=wanted)
    if most is not None and wanted > most:
        raise UsageError(
            f"context={wanted} is more than the {most} tokens that the model was made for.",
            advice="What it predicts beyond them says nothing about its quality.",
            got=wanted,
            most=most,
        )
    return wanted


def most_tokens(subject: Subject, full: Subject | None) -> int | None:
    """Tokens that both models were made for; None if neither says so."""
    longest = [model_context(one.source.config) for one in (subject, full) if one is not None]
    return min((limit for limit in longest if limit is not None), default=None)


def check_length(subject: Subject, full: Subject | None, prompts: Sequence[Prompted]) -> None:
    """Checks that continuations end within what both models were made for.

    Raises:
        UsageError: If one does not.
    """
    most, longest = most_tokens(subject, full), max((prompt.length for prompt in prompts), default=0)
    if most is not None and longest > most:
        raise UsageError(
            f"A prompt and what follows it take {longest} tokens, more than the {most} that the model was made for.",
            advice="Ask for fewer: prompt_tokens, continuation_tokens, answer_tokens.",
            got=longest,
            most=most,
        )


def tokenise(
    subject: Subject, full: Subject | None, contents: Sequence[tuple[str, str]], limit: int | None
) -> list[Text]:
    """The texts as tokens, which have to be the same for both models."""
    texts = [encode(subject.tokenizer, content, name=name, limit=limit) for name, content in contents]
    if full is not None:
        again = [encode(full.tokenizer, content, name=name, limit=limit) for name, content in contents]
        check_same_tokens(subject.tokenizer, full.tokenizer, texts, again)
    return texts


def steps(texts: Sequence[Text], inputs: int, stride: int | None) -> tuple[int, int]:
    """Tokens of a text in a window, beside its prefix, and predictions in it."""
    room = inputs - max((len(text.prefix) for text in texts), default=0)
    if room < 1:
        raise UsageError(
            f"context={inputs} leaves no room beside the token that begins every text.",
            advice="Give at least 2.",
            got=inputs,
        )
    if stride is not None and not 1 <= stride <= inputs:
        raise UsageError(
            f"stride={stride} is not between 1 and the context of {inputs} tokens.",
            advice="A larger stride would leave tokens out.",
            got=stride,
        )
    return room, room if stride is None else min(stride, room)

"""The form of an answer in a model's own words: its reasoning first, then calls of tools or what the request wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coterie.errors import UnsupportedError, UsageError
from coterie.generation.answers import CHANNEL, END, MESSAGE, START, AnswerReader, ChannelReader, TaggedReader
from coterie.generation.call_formats import CallFormat, call_format, quoted
from coterie.generation.grammar import Grammar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from coterie.generation.toolbox import Toolbox

_NOTHING = 'start: ""'


def answer_form(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    reader: AnswerReader,
    toolbox: Toolbox,
    wanted: Grammar | None,
) -> Grammar | None:
    """What an answer is kept to, reasoning and calls included; None where it is free.

    Args:
        tokenizer: The tokenizer, which knows what marks are.
        template: The chat template.
        reader: How the answer is going to be read.
        toolbox: What may be called.
        wanted: The form that the request asks for, of what the model says.

    Raises:
        UsageError: If the request asks for a form and for a call instead.
        UnsupportedError: If a call has to be made, and how the model writes calls is not known.
    """
    if wanted is not None and toolbox.must:
        raise UsageError("An answer that has to be a call has no form of its own.", advice="Leave one of them out.",
                         field="grammar")  # fmt: skip
    calls = call_format(template, _added(tokenizer)) if toolbox.tools else None
    if toolbox.must and calls is None:
        raise UnsupportedError("How this model calls tools is not known: none can be demanded.", field="tool_choice")
    if wanted is None and not toolbox.must:
        return None
    mark = _marks(tokenizer)
    if wanted is not None and calls is None and type(reader) is AnswerReader:
        return wanted
    frame = _frame(reader, mark, calls, toolbox, answers=wanted is not None)
    return Grammar("lark", _NOTHING, frame) if wanted is None else Grammar(wanted.kind, wanted.text, frame)


def last_call_ends(template: str | None, tokenizer: PreTrainedTokenizerBase, toolbox: Toolbox) -> tuple[str, ...]:
    """Texts that end an answer because one call is all that may be made."""
    made = call_format(template, _added(tokenizer)) if toolbox.tools and not toolbox.several else None
    return (made.closing,) if made is not None and made.closing else ()


def _frame(
    reader: AnswerReader, mark: Callable[[str], str], calls: CallFormat | None, toolbox: Toolbox, *, answers: bool
) -> str:
    """The grammar around an answer."""
    lines: list[str] = []
    before, said = "", "@answer"
    if isinstance(reader, ChannelReader):
        thought = f'{mark(CHANNEL)} "analysis" {mark(MESSAGE)} THOUGHT? {mark(END)} {mark(START)} "assistant"'
        before, said = f"({thought})* ", f'{mark(CHANNEL)} "final" {mark(MESSAGE)} @answer'
        lines.append(r"THOUGHT: /(.|\n)+/")
    elif isinstance(reader, TaggedReader):
        opening = "" if reader.inside else f"{mark(reader.opening)} "
        closing = mark(reader.closing)
        if closing.startswith('"'):
            thought = f"{opening}thought BLANK?"
            lines.append(rf"thought[suffix={closing}]: /(.|\n)*/")
        else:
            thought = f"{opening}THOUGHT? {closing} BLANK?"
            lines.append(r"THOUGHT: /(.|\n)+/")
        before = f"{thought} " if reader.inside else f"({thought})? "
        lines.append(r"BLANK: /\n{1,2}/")
    parts = [said] if answers else []
    if calls is not None:
        parts.append("calls")
        lines.append(calls.rules(toolbox.callable_tools, mark, several=toolbox.several))
    return "\n".join([f"start: {before}({' | '.join(parts)})", *lines])


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    made: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    return made


def _marks(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """How a grammar writes marks: tokens that llguidance takes for special ones by their ids, as they have no text."""
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    named = {str(token.content): (number, token.special) for number, token in added.items()}
    special = {text: number for text, (number, said) in named.items() if said or (text[:1] == "<" and text[-1:] == ">")}

    def mark(text: str) -> str:
        return f"<[{special[text]}]>" if text in special else quoted(text)

    return mark

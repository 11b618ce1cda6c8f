"""The form of an answer in a model's own words: its reasoning first, then calls of tools or what the request wants."""

from __future__ import annotations

import re
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
    if toolbox.strict and calls is None:
        raise UnsupportedError("How this model calls tools is not known: calls cannot be kept to a schema.",
                               field="tools")  # fmt: skip
    if wanted is None and not (toolbox.must or toolbox.strict):
        return None
    mark = _marks(tokenizer)
    if wanted is not None and calls is None and not isinstance(reader, TaggedReader | ChannelReader):
        return wanted
    frame = _frame(reader, mark, calls, toolbox, wanted)
    return Grammar("lark", _NOTHING, frame, "tools") if wanted is None else Grammar(wanted.kind, wanted.text, frame)


def last_call_ends(template: str | None, tokenizer: PreTrainedTokenizerBase, toolbox: Toolbox) -> tuple[str, ...]:
    """Texts that end an answer because one call is all that may be made."""
    made = call_format(template, _added(tokenizer)) if toolbox.tools and not toolbox.several else None
    return (made.closing,) if made is not None and made.closing else ()


def _frame(
    reader: AnswerReader,
    mark: Callable[[str], str],
    calls: CallFormat | None,
    toolbox: Toolbox,
    wanted: Grammar | None,
) -> str:
    """The grammar around an answer."""
    lines: list[str] = []
    before = final = ""
    if isinstance(reader, ChannelReader):
        thought = f'{mark(CHANNEL)} "analysis" {mark(MESSAGE)} THOUGHT? {mark(END)} {mark(START)} "assistant"'
        before, final = f"({thought})* ", f'{mark(CHANNEL)} "final" {mark(MESSAGE)} '
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
    parts = [] if wanted is None else [f"{final}@answer"]
    if calls is not None and wanted is None and not toolbox.must:
        parts.append(_free(calls, toolbox, mark, final, lines))
    elif calls is not None:
        parts.append("calls")
        lines.append(calls.rules(toolbox.callable_tools, mark, several=toolbox.several))
    return "\n".join([f"start: {before}({' | '.join(parts)})", *lines])


def _free(calls: CallFormat, toolbox: Toolbox, mark: Callable[[str], str], final: str, lines: list[str]) -> str:
    """Any text, and calls that are kept to their tools; adds the rules for that."""
    opening = mark(calls.opening)
    if not opening.startswith('"'):
        # A token of its own, which no text has.
        lines += [r"SAID: /(.|\n)+/", calls.rules(toolbox.callable_tools, mark, several=toolbox.several)]
        return f"{final}SAID? | calls" if final else "SAID? calls | SAID?"
    begun = calls.rules(toolbox.callable_tools, lambda text: "" if text == calls.opening else mark(text), several=False)
    other = re.escape(calls.opening).replace("/", r"\/")
    lines += [
        f"said[suffix={opening}]: /(.|\\n)*/",
        rf"FREE: /(.|\n)+/ & ~/(.|\n)*{other}(.|\n)*/",
        begun,
    ]
    return "(said calls)* FREE?" if toolbox.several else "said calls | FREE?"


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

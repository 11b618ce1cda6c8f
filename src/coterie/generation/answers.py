"""What a model's answer consists of: its reasoning, calls of tools, and what it says.

Models that reason write it before the answer, between marks; gpt-oss writes every part into a channel. Joined as one
text it could not be read, and the next prompt would hold what its template keeps out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from coterie.generation.model_json import read_written
from coterie.generation.streaming import overlap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = Literal["text", "reasoning"]

REASONING_MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""How models write where their reasoning begins and ends."""

CHANNEL, MESSAGE, START, END, CONSTRAIN = "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"
_ENDS = (END, "<|return|>", "<|call|>", START)

CALL_MARKS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<tool_call>", "</tool_call>", "<|tool_call|>",
               "<|tool_call_begin|>", "<|tool_call_end|>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>",
               "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")  # fmt: skip
"""Marks of calls in text, which stay there: without them the next prompt would not have a call in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model wants made.

    Attributes:
        name: Of the tool.
        arguments: As the model wrote them, usually a JSON object.
    """

    name: str
    arguments: str

    def as_message(self) -> dict[str, Any]:
        """As templates expect it: the arguments as an object, where they are one."""
        try:
            arguments = read_written(self.arguments)
        except ValueError:
            arguments = self.arguments
        return {"type": "function", "function": {"name": self.name, "arguments": arguments}}


@dataclass(slots=True)
class AnswerReader:
    """Takes an answer's text piece by piece and hands on its parts; as it is, a text without parts.

    Attributes:
        marks: Special tokens whose text it has to see.
        text: What the model said so far.
        reasoning: What it thought.
        calls: What it wants called.
        on_text: Told each piece of the text.
        on_reasoning: Told each piece of the reasoning.
        apart: Whether its end takes a while, and nobody else should wait for it.
    """

    apart: ClassVar[bool] = False

    marks: tuple[str, ...] = CALL_MARKS
    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    on_text: Callable[[str], None] | None = None
    on_reasoning: Callable[[str], None] | None = None
    _rest: str = ""

    def feed(self, piece: str) -> None:
        """Takes a piece of the answer."""
        self._rest += piece
        self._read(final=False)

    def end(self) -> None:
        """Takes what is left as it is."""
        self._read(final=True)

    def _read(self, *, final: bool) -> None:
        self._hand_on("text", self._rest)
        self._rest = ""

    def _hand_on(self, part: Part, piece: str) -> None:
        if not piece:
            return
        told = self.on_text if part == "text" else self.on_reasoning
        if part == "text":
            self.text += piece
        else:
            self.reasoning += piece
        if told is not None:
            told(piece)

    def _take(self, part: Part, mark: str, *, final: bool) -> bool:
        """Hands on what comes before a mark, and says whether it was there; what may be its beginning waits."""
        before, found, rest = self._rest.partition(mark)
        held = 0 if found or final else overlap(before, (mark,))
        self._hand_on(part, before[: len(before) - held])
        self._rest = rest if found else before[len(before) - held :]
        return bool(found)


class TaggedReader(AnswerReader):
    """Reads answers that begin with reasoning between two marks.

    Args:
        opening: Mark before the reasoning.
        closing: Mark after it.
        inside: Whether the prompt has ended with ``opening``.

    Attributes:
        opening, closing, inside: The same.
    """

    def __init__(self, opening: str, closing: str, *, inside: bool = False) -> None:
        super().__init__(marks=(opening, closing, *CALL_MARKS))
        self.opening, self.closing = opening, closing
        self.inside = inside
        self._state: Literal["begin", "reasoning", "between", "text"] = "reasoning" if inside else "begin"

    def _read(self, *, final: bool) -> None:
        if self._state == "begin":
            begun = self._rest.lstrip()
            if begun.startswith(self.opening):
                self._state, self._rest = "reasoning", begun[len(self.opening) :]
            elif self.opening.startswith(begun) and not final:
                return
            else:
                self._state = "text"
        if self._state == "reasoning":
            if not self.reasoning:
                self._rest = self._rest.lstrip("\n")
            if self._take("reasoning", self.closing, final=final):
                self._state = "between"
                self.reasoning = self.reasoning.rstrip("\n")
        if self._state == "between":
            self._rest = self._rest.lstrip()
            if self._rest:
                self._state = "text"
        if self._state == "text":
            self._hand_on("text", self._rest)
            self._rest = ""


class ChannelReader(AnswerReader):
    """Reads answers in channels, as gpt-oss writes them: ``<|channel|>final<|message|>Hello!<|end|>``.

    The final channel is what the model says. Everything in other channels is reasoning, but what is addressed to a
    tool, which is a call.
    """

    def __init__(self) -> None:
        super().__init__(marks=(CHANNEL, MESSAGE, CONSTRAIN, *_ENDS))
        self._state: Literal["begin", "header", "body"] = "begin"
        self._header = ""
        self._body = ""

    def _read(self, *, final: bool) -> None:
        while self._rest:
            before = len(self._rest), self._state
            if self._state == "begin":
                if not self._begin(final=final):
                    return
            elif self._state == "header":
                self._header, found, rest = self._rest.partition(MESSAGE)
                if not found:
                    self._rest = "" if final else self._rest
                    return
                self._state, self._rest, self._body = "body", rest, ""
            else:
                self._read_body(final=final)
            if (len(self._rest), self._state) == before:
                return
        if final and self._state == "body":
            self._finish_body()

    def _begin(self, *, final: bool) -> bool:
        """Where an answer begins without a channel, it is a plain text."""
        begun = self._rest.lstrip()
        known = (CHANNEL, START, MESSAGE, "to=")
        if begun.startswith(known):
            self._state = "header"
        elif any(mark.startswith(begun) for mark in known) and not final:
            return False
        else:
            self._state, self._header = "body", f"{CHANNEL}final"
        return True

    def _read_body(self, *, final: bool) -> None:
        places = [(place, mark) for mark in _ENDS if (place := self._rest.find(mark)) >= 0]
        place, mark = min(places, default=(len(self._rest), ""))
        held = 0 if mark or final else overlap(self._rest, _ENDS)
        piece, self._rest = self._rest[: place - held], self._rest[place - held :]
        self._body += piece
        if self._recipient() is None:
            self._hand_on("text" if self._channel() == "final" else "reasoning", piece)
        if mark:
            self._rest = self._rest[len(mark) :]
            self._finish_body()
            self._state = "header"

    def _finish_body(self) -> None:
        recipient = self._recipient()
        if recipient is not None and self._body:
            self.calls.append(ToolCall(name=recipient, arguments=self._body.strip()))
        self._body = ""

    def _channel(self) -> str:
        """The channel that the header names; without one it is what the model says."""
        _, found, rest = self._header.partition(CHANNEL)
        return rest.split(CONSTRAIN)[0].split()[0] if found and rest.split(CONSTRAIN)[0].split() else "final"

    def _recipient(self) -> str | None:
        words = self._header.replace(CHANNEL, " ").replace(CONSTRAIN, " ").split()
        return next((word[len("to=") :].removeprefix("functions.") for word in words if word.startswith("to=")), None)


def reader_for(tokenizer: PreTrainedTokenizerBase, template: str | None, prompt: str) -> AnswerReader:
    """Chooses how a model's answers are read.

    Args:
        tokenizer: The tokenizer, whose added tokens include the marks that the model knows.
        template: The chat template, or None.
        prompt: The rendered prompt: it may open the reasoning, or close it at once.
    """
    if template is None:
        return AnswerReader()
    known: Collection[str] = getattr(tokenizer, "get_added_vocab", dict)()
    if CHANNEL in known and MESSAGE in known:
        return ChannelReader()
    # A token of its own says more than a template, which may pass marks by that other models write.
    for sources in ((known, template), (known,), (template,)):
        for opening, closing in REASONING_MARKS:
            if all(closing in source for source in sources):
                return TaggedReader(opening, closing, inside=prompt.rstrip().endswith(opening))
    return AnswerReader()

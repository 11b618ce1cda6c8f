"""The form that an answer has to have: a JSON schema, a regular expression, or a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from coterie.errors import UsageError

Kind = Literal["json_schema", "regex", "lark", "gbnf"]

MOST_NBYTES = 256 << 10
"""Of what describes the form."""
ANSWER = "answer"
"""What a frame calls the form within it."""

BLANKS = r"[ \n\t]{0,20}"
"""What may stand between two parts of a JSON value: without a limit, a model may write nothing else."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A form. Whether it can be kept to is seen when it is compiled.

    Attributes:
        kind: How it is described.
        text: The description.
        frame: A grammar in Lark's syntax around it, which calls it ``@answer``: what else a model writes, such as its
            reasoning. Nothing where it stands alone.

    Raises:
        UsageError: If the description is too long. Fact ``field``.
    """

    kind: Kind
    text: str
    frame: str = ""

    def __post_init__(self) -> None:
        nbytes = len(self.text.encode("utf-8", "replace"))
        if nbytes > MOST_NBYTES:
            raise UsageError(
                f"The description of the answer's form may have {MOST_NBYTES:,} bytes, not {nbytes:,}.",
                advice="Describe it more shortly.",
                field="grammar",
            )

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Grammar:
        """JSON that a schema allows.

        Raises:
            UsageError: If it is no JSON, or too large.
        """
        try:
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"The schema is no JSON: {error}.", field="grammar") from error
        return cls("json_schema", text)

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches as a whole, in the syntax of Rust's ``regex``."""
        return cls("regex", pattern)

    @classmethod
    def of_text(cls, text: str) -> Grammar:
        """A grammar in Lark's syntax, or in llama.cpp's GBNF, which has ``::=``."""
        return cls("gbnf" if "::=" in text else "lark", text)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of several texts."""
        return cls("lark", "start: " + " | ".join(json.dumps(one, ensure_ascii=False) for one in texts))

    @property
    def digest(self) -> str:
        """The same for the same form."""
        return sha256("\0".join((self.kind, self.text, self.frame)).encode("utf-8", "replace")).hexdigest()

    def compiled(self) -> str:
        """The form in the words of llguidance.

        Raises:
            ValueError: If it cannot be said in them.
        """
        from llguidance import regex_to_lark
        from llguidance.gbnf_to_lark import any_to_lark

        part: dict[str, Any]
        match self.kind:
            case "json_schema":
                part = {"json_schema": json.loads(self.text) | {"x-guidance": {"whitespace_pattern": BLANKS}}}
            case "regex":
                part = {"lark_grammar": f"start: /{regex_to_lark(self.text)}/"}
            case "gbnf":
                part = {"lark_grammar": any_to_lark(self.text)}
            case _:
                part = {"lark_grammar": self.text}
        answer = {"name": ANSWER, **part}
        parts = [answer] if not self.frame else [{"name": "frame", "lark_grammar": self.frame}, answer]
        return json.dumps({"grammars": parts})

"""The form that an answer is to have: what a request may say of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from coterie.generation.grammar import MOST_NBYTES, Grammar
from coterie.server.schemas.fields import Fields

Description = Annotated[str, Field(min_length=1, max_length=MOST_NBYTES)]
Schema = Annotated[dict[str, Any], Field(alias="schema")]


class PlainText(Fields):
    """Any text."""

    type: Literal["text"]

    @property
    def grammar(self) -> Grammar | None:
        """The form."""
        return None


class JsonObject(Fields):
    """A JSON object; one that a schema allows, as llama.cpp has it."""

    model_config = ConfigDict(**Fields.model_config | {"serialize_by_alias": True})

    type: Literal["json_object"]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @property
    def grammar(self) -> Grammar:
        """The form."""
        return Grammar.json_object() if self.schema_ is None else Grammar.json_schema(self.schema_)


class NamedSchema(Fields):
    """A schema. Its name and description are for whoever reads it; the answer always has the form."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    schema_: Schema
    strict: bool | None = None


class JsonSchema(Fields):
    """JSON that a schema allows."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def grammar(self) -> Grammar:
        """The form."""
        return Grammar.json_schema(self.json_schema.schema_)


class Regex(Fields):
    """Text that a regular expression matches as a whole, in the syntax of Rust."""

    type: Literal["regex"]
    pattern: Description

    @property
    def grammar(self) -> Grammar:
        """The form."""
        return Grammar.regex(self.pattern)


class WrittenGrammar(Fields):
    """Text of a grammar, in Lark's syntax as llguidance has it, or in llama.cpp's GBNF."""

    type: Literal["grammar"]
    grammar_: Annotated[Description, Field(alias="grammar")]

    @property
    def grammar(self) -> Grammar:
        """The form."""
        return Grammar.of_text(self.grammar_)


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema | Regex | WrittenGrammar, Field(discriminator="type")]

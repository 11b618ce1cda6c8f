"""Options for the form that an answer is to have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.errors import InputError, UsageError
from coterie.files.json_text import read_json_object
from coterie.files.text import read_text

if TYPE_CHECKING:
    from coterie.generation.grammar import Grammar

JsonSchemaOption = Annotated[
    Path | None,
    typer.Option(
        "--json-schema",
        exists=True,
        dir_okay=False,
        readable=True,
        metavar="FILE",
        show_default=False,
        help="Answer in JSON that the schema in this file allows.",
    ),
]

GrammarOption = Annotated[
    Path | None,
    typer.Option(
        "--grammar",
        exists=True,
        dir_okay=False,
        readable=True,
        metavar="FILE",
        show_default=False,
        help="Answer as the grammar in this file allows: in Lark's syntax, or in llama.cpp's GBNF.",
    ),
]

RegexOption = Annotated[
    str | None,
    typer.Option(
        "--regex",
        metavar="PATTERN",
        show_default=False,
        help="Answer with a text that this regular expression matches as a whole.",
    ),
]


def form_of(schema: Path | None, grammar: Path | None, regex: str | None) -> Grammar | None:
    """The form that an answer is to have; None where nothing is said of it.

    Raises:
        UsageError: If more than one form is asked for.
        InputError: If a file cannot be read, or a schema is no JSON object.
    """
    from coterie.generation.grammar import Grammar

    said = [
        name
        for name, value in (("--json-schema", schema), ("--grammar", grammar), ("--regex", regex))
        if value is not None
    ]
    if len(said) > 1:
        raise UsageError(f"{said[0]} and {said[1]} both say what form the answer has.", advice="Leave one of them out.")
    if schema is not None:
        return Grammar.json_schema(read_json_object(schema, error=InputError, advice="A schema is a JSON object."))
    if grammar is not None:
        return Grammar.of_text(read_text(grammar))
    return None if regex is None else Grammar.regex(regex)

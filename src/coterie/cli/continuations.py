"""What `coterie evaluate` shows of greedy continuations: figures, and the texts of both models side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from coterie.cli.console import plain_table, print_table, results
from coterie.cli.estimates import value_and_reach

if TYPE_CHECKING:
    from coterie.evaluate import Continuation, Continuations, Likeness

_PROMPT_END = 80
"""Characters of a prompt's end that are shown."""


def print_continuations(found: Continuations) -> None:
    """Prints a table of figures, and a block of texts for each prompt."""
    out = results()
    out.print()
    numbers = ("prompts", "equal tokens", "identical, %", "BLEU", "chrF")
    table = plain_table("continuations of", *numbers, right=numbers)
    for row in (*found.texts, *([found.total] if len(found.texts) > 1 else [])):
        table.add_row(row.name, *_figures(row))
    print_table(table)
    for sample in found.samples:
        out.print()
        _print_sample(sample)
    out.print()
    out.print(
        f"prompts of {found.prompt_tokens} tokens, continued greedily with {found.new_tokens} at most; "
        "the full model's texts are the reference"
    )
    out.print(f"BLEU {found.bleu_signature}")
    out.print(f"chrF {found.chrf_signature}")


def _figures(row: Likeness) -> tuple[str, ...]:
    return (
        str(row.prompts),
        value_and_reach(row.equal_tokens, 1),
        value_and_reach(row.identical, 1, scale=100),
        f"{row.bleu:.2f}",
        f"{row.chrf:.2f}",
    )


def _print_sample(sample: Continuation) -> None:
    """Both texts; what comes after the first difference is bold in a terminal."""
    same = (
        "the same to the last token"
        if sample.identical
        else f"{sample.equal_tokens} equal tokens before the first that differs"
    )
    out = results()
    out.print(f"{sample.text}, token {sample.start}: {same}")
    table = plain_table("full model", "model")
    shared = 0
    while shared < min(len(sample.full), len(sample.model)) and sample.full[shared] == sample.model[shared]:
        shared += 1
    table.add_row(_marked(sample.full, shared), _marked(sample.model, shared))
    out.print(Text("…" + _one_line(sample.prompt[-_PROMPT_END:]), style="dim"))
    out.print(table)


def _marked(text: str, shared: int) -> Text:
    marked = Text(_one_line(text[:shared]))
    return marked.append(_one_line(text[shared:]), style="bold")


def _one_line(text: str) -> str:
    """Ends of lines as signs, so that a table keeps its form."""
    return text.replace("\r\n", "\n").replace("\n", "⏎")

"""What `coterie evaluate` shows of what models write: figures, and the texts of both side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from coterie.cli.console import plain_table, print_table, results
from coterie.cli.estimates import value_and_interval, value_and_reach

if TYPE_CHECKING:
    from coterie.evaluate import Answer, Continuation, Continuations, ExactMatch, Likeness

_ANSWERS = 20
"""Answers that are shown of each file."""
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


def print_exact_match(found: tuple[ExactMatch, ...]) -> None:
    """Prints a table of figures, and the answers that are wrong or that only one of the two models gives."""
    results().print()
    compared = any(row.full_right is not None for row in found)
    numbers = ("questions", "right, %", *(("full model's", "model alone", "full model alone") if compared else ()))
    table = plain_table("exact match", *numbers, right=numbers)
    for row in found:
        table.add_row(row.name, *_shares(row))
    print_table(table)
    for row in found:
        telling = [one for one in row.answers if (not one.right if one.full is None else one.right != one.full_right)]
        if telling:
            results().print()
            _print_answers(row.name, telling, compared=compared)


def _shares(row: ExactMatch) -> tuple[str, ...]:
    own = (str(row.questions), value_and_interval(row.right, 1, scale=100))
    if row.full_right is None:
        return own
    return (*own, value_and_interval(row.full_right, 1, scale=100), str(row.only_model), str(row.only_full))


def _print_answers(name: str, answers: list[Answer], *, compared: bool) -> None:
    what = "answered rightly by one of the two" if compared else "not answered rightly"
    table = plain_table(f"{name}: {what}", "right answer", *(("full model",) if compared else ()), "model")
    for one in answers[:_ANSWERS]:
        texts = (one.expected, *(() if one.full is None else (one.full,)), one.model)
        table.add_row(one.asked, *(Text(_one_line(text)) for text in texts))
    print_table(table)
    if len(answers) > _ANSWERS:
        results().print(f"and {len(answers) - _ANSWERS} more, which --json has")


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

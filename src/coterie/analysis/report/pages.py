"""A report as a page: Markdown with picture files beside it, or HTML in one file. Both say the same."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from coterie.analysis.report.findings import Answer, Claim, Report, shown

_CLAIMS = ("figure", "value", "95 %", "chance or floor", "first half", "second half", "tokens", "verdict")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:.85rem;margin:1rem 0;display:block;overflow-x:auto}"
    "th,td{border:1px solid #ccc;padding:.2rem .5rem;text-align:left}th{background:#f3f3f3}"
    "img{max-width:100%;background:#fff}.answer{font-weight:600}.note{color:#555;font-size:.85rem}"
    "@media (prefers-color-scheme:dark){body{background:#181818;color:#ddd}th{background:#2a2a2a}"
    "th,td{border-color:#444}a{color:#8ab4f8}.note{color:#aaa}}"
)


def markdown_page(report: Report) -> str:
    """The page as Markdown; pictures are ``NAME.svg`` beside it."""
    parts = [f"# What the experts of {_md(report.model)} do", *(_md(line) for line in _introduction(report))]
    parts.append("\n".join(f"- [{answer.question}](#{_anchor(answer.question)})" for answer in report.answers))
    for answer in report.answers:
        parts += [f"## {answer.question}", f"**{_md(answer.answer)}**"]
        if answer.claims:
            parts.append(_md_table(_CLAIMS, [_claim_cells(claim) for claim in answer.claims]))
        parts += [f"![{picture.title}]({picture.name}.svg)" for picture in answer.pictures]
        for table in answer.tables:
            parts += [f"{_md(table.title)}:", _md_table(table.columns, table.rows)]
        parts += [f"*{_md(note)}*" for note in answer.notes]
    return "\n\n".join(parts) + "\n"


def html_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page as HTML with everything in it.

    Args:
        report: What it says.
        pictures: Name → SVG file.
    """
    title = html.escape(f"What the experts of {report.model} do")
    parts = [f"<h1>{title}</h1>", *(f"<p>{html.escape(line)}</p>" for line in _introduction(report))]
    links = "".join(f'<li><a href="#{answer.key}">{html.escape(answer.question)}</a></li>' for answer in report.answers)
    parts.append(f"<nav><ul>{links}</ul></nav>")
    for answer in report.answers:
        parts += _html_answer(answer, pictures)
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _introduction(report: Report) -> list[str]:
    groups = [f"{name} {tokens:,}" for names in (report.modalities, report.domains) for name, tokens in names.items()]
    middle = len(report.modalities)
    runs = ", ".join(dict.fromkeys(moment[:10] for moment in report.recorded))
    trial = f" A short run of the model read {report.trial_tokens:,} tokens." if report.trial_tokens else ""
    return [
        f"{report.model_class}, {report.component}, fingerprint {report.identity}: {report.experts:,} experts in "
        f"{report.banks} banks. Profile of {report.tokens:,} tokens, recorded {runs}. Tokens by modality: "
        f"{', '.join(groups[:middle])}; by domain: {', '.join(groups[middle:])}.{trial}",
        "Each figure stands beside that of the first half of the tokens of each kind and that of the second. It "
        "“holds in both halves” if it is above chance (or its noise floor) in the whole, at 95 % confidence, "
        "and in each half; a figure that only describes, if its halves differ by no more than its error lets expect. "
        "Intervals are jackknifed over stretches of consecutive segments.",
    ]


def _claim_cells(claim: Claim) -> tuple[str, ...]:
    def cell(value: float | None) -> str:
        return shown(value, claim.unit)

    interval = "–" if claim.low is None else f"{cell(claim.low)} to {cell(claim.high)}"
    tokens = f"{claim.tokens:,}" if claim.tokens else "–"
    numbers = (cell(claim.value), interval, cell(claim.chance), cell(claim.first), cell(claim.second), tokens)
    return (claim.name, *numbers, claim.verdict)


def _anchor(heading: str) -> str:
    """What Markdown readers call a heading."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c == "-")


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def _md_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell if cell == "---" else _md(cell) for cell in line) + " |" for line in lines)


def _html_answer(answer: Answer, pictures: Mapping[str, bytes]) -> list[str]:
    parts = [
        f'<h2 id="{answer.key}">{html.escape(answer.question)}</h2>',
        f'<p class="answer">{html.escape(answer.answer)}</p>',
    ]
    if answer.claims:
        parts.append(_html_table(_CLAIMS, [_claim_cells(claim) for claim in answer.claims]))
    for picture in answer.pictures:
        data = base64.b64encode(pictures[picture.name]).decode()
        parts.append(f'<p><img alt="{html.escape(picture.title)}" src="data:image/svg+xml;base64,{data}"></p>')
    for table in answer.tables:
        parts += [f"<p>{html.escape(table.title)}:</p>", _html_table(table.columns, table.rows)]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in answer.notes]
    return parts


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"

"""A benchmark's result: printed, and written as JSON for programs and Markdown for the documentation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.machine import describe_machine, load_average

RESULTS = Path(__file__).resolve().parent.parent / "results"
IMAGES = RESULTS.parent.parent / "docs" / "images"


@dataclass
class Table:
    """Rows of text under a caption."""

    caption: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> str:
        """The table in Markdown, its columns aligned for reading as text."""
        lines = [list(self.columns), *[[str(cell) for cell in row] for row in self.rows]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        texts = [
            "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
        ]
        texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return f"{self.caption}\n\n" + "\n".join(texts)


@dataclass
class Verdict:
    """One requirement and whether the figures meet it."""

    requirement: str
    measured: str
    met: bool


class Report:
    """Collects what a benchmark measured.

    Args:
        name: Of the benchmark and its files.
        title: For people.
        work: Directory whose disk was used.
        quick: Whether this was the small run: it is printed, and kept apart from the full figures.
        summary_name: Name of the file with the summary; by default made of the report's.

    Attributes:
        summary: A few rows for the front page, written to a file of their own.
    """

    def __init__(self, name: str, title: str, *, work: Path, quick: bool, summary_name: str | None = None) -> None:
        self.name = name
        self.title = title
        self.quick = quick
        self.tables: list[Table] = []
        self.summary: Table | None = None
        self.summary_name = summary_name or f"{name}_summary"
        self.verdicts: list[Verdict] = []
        self._figures: list[tuple[str, str, Callable[[], bytes]]] = []
        self.values: dict[str, object] = {}
        self._work = work
        self._load_before = load_average()

    def table(self, caption: str, columns: Sequence[str]) -> Table:
        """Adds an empty table."""
        table = Table(caption, columns)
        self.tables.append(table)
        return table

    def figure(self, name: str, caption: str, drawn: Callable[[], bytes]) -> None:
        """Adds a picture.

        Args:
            name: Of its file, without the ending.
            caption: What it shows.
            drawn: Gives the bytes of an SVG file; called at the end, because it may import much.
        """
        self._figures.append((name, caption, drawn))

    def require(self, requirement: str, measured: str, met: bool) -> None:
        """Adds a requirement and whether it is met."""
        self.verdicts.append(Verdict(requirement, measured, met))

    def finish(self) -> int:
        """Prints and writes everything; returns the exit status: 1 if a requirement is not met."""
        # Only now: it imports torch, and while this process has that mapped, no cold start that is measured is cold.
        machine = describe_machine(self._work)
        machine["load average"] = f"{self._load_before:.2f} before, {load_average():.2f} after"
        folder = RESULTS / "quick" if self.quick else RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        text = self._markdown(machine)
        print(text)
        (folder / f"{self.name}.md").write_text(text, encoding="utf-8")
        if self.summary is not None:
            (folder / f"{self.summary_name}.md").write_text(self.summary.markdown() + "\n", encoding="utf-8")
        plain = {
            "name": self.name,
            "quick": self.quick,
            "machine": machine,
            "tables": [{"caption": t.caption, "columns": t.columns, "rows": t.rows} for t in self.tables],
            "requirements": [vars(verdict) for verdict in self.verdicts],
            "values": self.values,
        }
        (folder / f"{self.name}.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        for name, _, drawn in self._figures:
            ((folder if self.quick else IMAGES) / f"{name}.svg").write_bytes(drawn())
        return 0 if all(verdict.met for verdict in self.verdicts) else 1

    def _markdown(self, machine: dict[str, str]) -> str:
        parts = [f"### {self.title}" + (" (quick run: small model, few rounds)" if self.quick else "")]
        parts += [table.markdown() for table in self.tables]
        place = "" if self.quick else "images/"
        parts += [f"![{caption}]({place}{name}.svg)" for name, caption, _ in self._figures]
        if self.verdicts:
            required = Table("Required:", ("requirement", "measured", "met"))
            required.rows = [(v.requirement, v.measured, "yes" if v.met else "**no**") for v in self.verdicts]
            parts.append(required.markdown())
        parts.append("; ".join(f"{label}: {text}" for label, text in machine.items()) + ".")
        return "\n\n".join(parts) + "\n"

"""What memory budgets hold of a whole Qwen3-Omni in four bits. Nothing is measured, everything is computed.

    python benchmarks/omni_memory.py

A checkpoint of the released dimensions is laid out as headers over holes, which take no room on the disk. It is asked
what anybody can ask about a checkpoint: ``coterie plan CHECKPOINT --scheme int4 --memory 8GiB``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import coterie
from coterie.planner import plan
from coterie.spec import format_bytes
from coterie.spec.footprint import PART_USES
from fullsize.omni.configuration import released_config
from fullsize.omni.hollow import write_hollow_checkpoint
from harness.report import RESULTS, Table

BUDGETS = (6, 8, 12, 16, 24)
"""GiB."""


def budgets_table(checkpoint: Path, memory: list[str]) -> Table:
    """What each budget holds of a store of a checkpoint with experts in int4, the rest as it is by default."""
    report = coterie.inspect(checkpoint, scheme="int4")
    budgets = plan(checkpoint, scheme="int4", memory=memory, measure=False).budgets
    context = budgets[0].memory.context
    table = Table(
        f"A store of {format_bytes(report.disk_nbytes)}, {format_bytes(report.dense_nbytes)} of it outside experts "
        f"(linear layers in {report.dense_scheme}), room for {context:,} tokens of context:",
        ("budget", "for experts", "share of them", "while a picture or sound is encoded", "while it speaks", "remark"),
    )
    for fit in (budget.memory for budget in budgets):
        remark = "" if fit.comfortable else f"less than twice the {format_bytes(report.working_set_nbytes)} of a token"
        if not fit.enough:
            remark = f"too little: about {format_bytes(fit.minimum)} are needed"
        table.rows.append(
            (
                format_bytes(fit.memory),
                format_bytes(fit.expert_nbytes) if fit.enough else "–",
                f"{fit.share:.0%}" if fit.enough else "–",
                *(format_bytes(fit.expert_nbytes - fit.lent.get(use, 0)) if fit.enough else "–" for use in PART_USES),
                remark,
            )
        )
    return table


def main() -> int:
    """Prints the table and writes it for publish.py."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_hollow_checkpoint(Path(folder) / "qwen3-omni", released_config())
        text = budgets_table(checkpoint, [f"{budget}GiB" for budget in BUDGETS]).markdown()
    print(text)
    (RESULTS / "omni_memory.md").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

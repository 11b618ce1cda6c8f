"""What `--batching fast` changes in what is predicted: texts that are read side by side, against each alone.

Every text is read token by token, the text's own tokens, so that what differs at one place does not make what follows
another text. KLD, its maximum and the same most probable token are as in `coterie evaluate`, with the predictions of
each text alone for the full model's. *passes* says how many texts shared the forward passes.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.models import generated_checkpoint
from harness.options import options
from harness.report import Report, Table
from synthetic import Dimensions

EVAL = Path(__file__).parent / "data" / "eval"
ENOUGH = 0.005
"""KLD that the same weights have on another backend."""


def in_float32(source: Path, target: Path) -> Path:
    """A checkpoint in float32."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    for file in target.glob("*.safetensors"):
        save_file({name: one.float() for name, one in load_file(file).items()}, file, metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    said = json.dumps(config).replace('"bfloat16"', '"float32"')
    (target / "config.json").write_text(said, encoding="utf-8")
    return target


def texts_of(model: Any, count: int, tokens: int) -> list[Any]:
    """The texts of `data/eval`, each from several places on; random tokens for a model without a tokenizer."""
    from coterie.errors import CoterieError
    from coterie.evaluate import Text, encode
    from coterie.generation.opened import OpenModel

    try:
        tokenizer = OpenModel.of(model).processors.tokenizer
    except CoterieError:
        ids = torch.randint(16, model.config.vocab_size, (count, tokens), generator=torch.Generator().manual_seed(0))
        return [Text(name=f"random {row}", ids=tuple(one.tolist())) for row, one in enumerate(ids)]
    files = sorted(EVAL.glob("*.txt"))
    begin = {number: 4000 * (number // len(files)) for number in range(count)}
    return [
        encode(tokenizer, files[number % len(files)].read_text(encoding="utf-8")[start:], name=str(number))
        for number, start in begin.items()
    ]


def measure(report: Report, table: Table, source: str | Path, name: str, counts: Sequence[int], args: Any) -> None:
    """Adds what company changes in the predictions of a model."""
    from coterie.engine import load
    from coterie.evaluate.company import compare_company

    with load(source, expert_memory="100%") as model:
        texts = texts_of(model, max(counts), args.prompt + max(counts) + args.tokens + 1)
        for count in counts:
            found = compare_company(model, texts[:count], prompt=args.prompt, tokens=args.tokens)
            passes = ", ".join(f"{times} of {rows}" for rows, times in sorted(found.passes.items()))
            cells = (f"{found.kld_mean:.2g}", f"{found.kld_max:.2g}", f"{found.same_top:.2%}")
            share = f"{found.identical / found.tokens:.1%}"
            table.rows.append((name, str(count), passes, str(found.tokens), *cells, share))
            report.values[f"{name}, {count}"] = [found.kld_mean, found.kld_max, found.same_top, found.identical]
            report.require(f"{name}, {count} texts: KLD ≤ {ENOUGH}", f"{found.kld_mean:.2g}", found.kld_mean <= ENOUGH)
            report.require(f"{name}, {count} texts: all share passes", passes, set(found.passes) == {count})


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the first text before (%(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="predictions of each text (%(default)s)")
    given = parser.parse_args()
    from coterie.extraction import extract
    from coterie.inspection import inspect

    if given.quick:
        given.streams, given.tokens = [2, 8], 16
    report = Report("company", "Texts side by side with --batching fast", work=given.work_dir.parent, quick=given.quick)
    columns = ("model", "texts", "passes", "predictions", "KLD mean", "max", "same top", "identical")
    table = report.table("Predictions in company, compared with those alone:", columns)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundled = Path(inspect("bundled").model.model)
        measure(report, table, "bundled", "bundled, bfloat16", given.streams, given)
        measure(report, table, in_float32(bundled, root / "wide"), "bundled, float32", given.streams, given)
        extract("bundled", root / "int4", scheme="int4")
        measure(report, table, root / "int4", "bundled, experts in int4", given.streams, given)
        if not given.quick:
            wide = generated_checkpoint(given.work_dir, Dimensions(layers=2, experts=32))
            measure(report, table, wide, "2 layers as wide as Qwen3-30B-A3B, bfloat16", given.streams, given)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

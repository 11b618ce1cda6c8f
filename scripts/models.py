"""The page of supported models, and the record of the runs that it is made of.

    COTERIE_RECORD=1 pytest tests/engine/test_matrix.py --junitxml=matrix.xml
    python scripts/models.py matrix.xml
    python scripts/docs.py

The second command writes docs/models.json from what the run found equal: only a test that passed is recorded, under the
release of transformers that it ran with; the records of other releases stay. The third writes docs/models.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

RECORDS = Path(__file__).resolve().parent.parent / "docs" / "models.json"

Record = dict[str, Any]


def records(report: Path) -> dict[str, Record]:
    """Variant → what was found, with the dtypes in which it was equal."""
    found: dict[str, Record] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if any(case.find(outcome) is not None for outcome in ("failure", "error", "skipped")):
            continue
        for entry in case.iter("property"):
            if entry.get("name") == "matrix":
                value = json.loads(entry.get("value") or "")
                record = found.setdefault(value["name"], value["facts"] | {"dtypes": []})
                record["dtypes"] = sorted({*record["dtypes"], value["dtype"].removeprefix("torch.")})
    return found


def models_page(notice: str) -> str:
    """The supported models, from the records alone."""
    from coterie.hf.families import OUT_OF_SCOPE

    releases: dict[str, dict[str, Record]] = json.loads(RECORDS.read_text(encoding="utf-8"))
    *_, newest = sorted(releases, key=_in_order)
    variants = releases[newest]
    equal = [name for name, record in variants.items() if record["dtypes"] == ["bfloat16", "float32"]]
    rows = "\n".join(_row(name, record, releases) for name, record in sorted(variants.items()))
    refused = "\n".join(f"- `{name}`: {reason}." for name, reason in sorted(OUT_OF_SCOPE.items()))
    parts = [
        "# Supported models",
        notice,
        f"Tiny models of {len(variants)} kinds, with the real classes of transformers {newest}, are run by "
        "`tests/engine/test_matrix.py`: in fp32 and bf16, from a checkpoint and from a store, with memory for a "
        f"quarter of the experts. For {len(equal)} of them the logits and the tokens of `generate` are bit for bit "
        'those of stock transformers with `experts_implementation="eager"`. This table is what the test recorded.',
        "Which model takes pictures, sounds and videos is told in [Pictures, sounds and "
        "videos](inputs.md#which-model-takes-what).",
        "- **Arithmetic**: *common* is the fast path for SwiGLU experts as most classes have them; *own* is the "
        "class's own forward, which gets the experts that it asks for.\n"
        '- **Absent experts**: how the router chooses, where `missing="mask"` has an adapter for it (see [Partial '
        'stores](partial-stores.md)); *k* if `experts_per_token` works too, *nearest* if `missing="nearest"` does. '
        '`"fetch"` (the bits of stock) and `"drop"` are run for every model by the same file, in bf16; `"error"` needs '
        "nothing of a router.\n"
        "- **transformers**: releases that it was run with.",
        "| model | class | experts | arithmetic | compared | absent experts | transformers |\n"
        f"|---|---|---|---|---|---|---|\n{rows}",
        "## Exceptions",
        "\n".join(_exceptions(variants)) or "None.",
        "## Refused by name",
        f"{refused}\n- Models with code of their own in their repository (`auto_map`): it is never run.\n"
        "- Models whose experts transformers does not hold in modules that are known: the error names the class.",
    ]
    return "\n\n".join(parts) + "\n"


def _in_order(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def _row(name: str, record: Record, releases: dict[str, dict[str, Record]]) -> str:
    routers = [_router(support) for support in record["routers"].values()]
    cells = [
        name,
        f"`{record['class']}`",
        ", ".join(f"`{cls}`" for cls in record["experts"]),
        "common" if record["common"] else "own",
        ", ".join(record["compared"]),
        "; ".join(dict.fromkeys(routers)),
        ", ".join(release for release in sorted(releases, key=_in_order) if name in releases[release]),
    ]
    return f"| {' | '.join(cells)} |"


def _router(support: Record) -> str:
    if support["family"] is None:
        return "—"
    extras = [word for word, has in (("k", support["experts_per_token"]), ("nearest", support["nearest"])) if has]
    return f"{support['family']} ({', '.join(extras)})" if extras else str(support["family"])


def _exceptions(variants: dict[str, Record]) -> Iterator[str]:
    """What a reader would not expect, each with its cause."""
    for name, record in sorted(variants.items()):
        if len(record["dtypes"]) < 2:
            yield f"- **{name}** was found equal in {record['dtypes'][0]} only."
        if "tokens" not in record["compared"]:
            yield f"- **{name}** writes no text: its logits are compared, tokens it has none."
        if record["tied"]:
            yield f"- **{name}** has modules that share their experts: they share one bank and its records."
        for router, support in record["routers"].items():
            if support["family"] is None:
                yield f"- **{name}**: absent experts cannot be masked: `{router}` {support['reason']}."


def main() -> int:
    """Replaces the records of the installed release of transformers."""
    import transformers

    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    known = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
    known[transformers.__version__] = records(Path(sys.argv[1]))
    RECORDS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {RECORDS.name}: {len(known[transformers.__version__])} variants of {transformers.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes a store that holds another selection of experts in each layer.

`coterie extract --experts IDS --layers LAYERS` knows two kinds of layers: those that the selection applies to, and the
rest, which keep everything. Where every layer has a share of its own, this does it:

    python examples/uneven_store.py bundled STORE --keep 3-5:0-18 --keep 6:0-1 --keep 7:0-4

Layers that no --keep names keep all their experts, and so does the dense part: the depth of a model is never cut.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from coterie.checkpoint import Checkpoint
from coterie.errors import CoterieError, UsageError
from coterie.extraction.copying import Copier, worker_count
from coterie.extraction.planning import plan_extraction, with_fingerprints
from coterie.extraction.progress import Meter
from coterie.spec import BankKey, parse_ranges
from coterie.store import StoreWriter


def choose(counts: dict[BankKey, int], keep: Iterable[str]) -> dict[BankKey, tuple[int, ...]]:
    """The experts of each bank that the ``LAYERS:IDS`` texts leave.

    Args:
        counts: Number of experts of each bank.
        keep: Such as ``"3-5:0-18"``; a layer may be named once.

    Raises:
        UsageError: If a text is not of that form, or names what the model does not have.
    """
    chosen = {key: tuple(range(count)) for key, count in counts.items()}
    named: set[int] = set()
    for text in keep:
        layers, colon, ids = text.partition(":")
        if not colon:
            raise UsageError(f"{text!r} does not say which experts to keep in which layers.", advice="As in 3-5:0-18.")
        selected = set(parse_ranges(layers, what="layers", limit=1 + max(key.layer for key in counts)))
        if named & selected:
            raise UsageError(f"Layer {min(named & selected)} is named twice.")
        named |= selected
        for key, count in counts.items():
            if key.layer in selected:
                chosen[key] = parse_ranges(ids, what="experts", limit=count)
    return chosen


def extract_uneven(checkpoint: str, store: Path, keep: Iterable[str]) -> None:
    """Writes the store, or finishes it if a former run was interrupted.

    Args:
        checkpoint: Directory, Hub id, or ``bundled``.
        store: The store's directory.
        keep: See :func:`choose`.

    Raises:
        CoterieError: As :func:`coterie.extract`.
    """
    source = Checkpoint.open(checkpoint)
    chosen = choose({key: bank.bank.num_experts for key, bank in source.banks.items()}, keep)
    plan = with_fingerprints(plan_extraction(source, chosen), source)
    with StoreWriter.open(store.absolute(), plan.store) as writer:
        meter = Meter("extract", writer.missing_nbytes(), None)
        Copier(source, writer, plan.dense, meter, workers=worker_count(source)).run()
        for name in writer.missing_files():
            writer.copy_file(plan.side_files[name], name)
        writer.finish()


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", help="a directory, a Hub id, or `bundled`")
    parser.add_argument("store", type=Path)
    parser.add_argument("--keep", action="append", default=[], metavar="LAYERS:IDS", help="may be repeated")
    arguments = parser.parse_args()
    try:
        extract_uneven(arguments.checkpoint, arguments.store, arguments.keep)
    except CoterieError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

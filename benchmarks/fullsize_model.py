"""Writes a full-size synthetic model: the same weights as a store, a GGUF file and, of small shapes, a checkpoint.

    python benchmarks/fullsize_model.py --shape qwen3-30b-a3b --store --gguf

Of Qwen3-30B-A3B the store has 20 GB and the GGUF file 17 GB; each takes some minutes and well under 2 GiB of memory.
What an interrupted run has written is kept: the same command goes on. What the model says is known beforehand, see
fullsize/walk.py: ``--prompt N`` prints the first N tokens of it, as text that both engines understand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fullsize.as_checkpoint import write_as_checkpoint
from fullsize.as_gguf import write_as_gguf
from fullsize.as_store import write_as_store
from fullsize.files import Files
from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES, weight_count
from fullsize.walk import text_of
from harness.options import WORK

LARGEST_CHECKPOINT = 12 * 10**9


def checkpoint_nbytes(shape: str) -> int:
    """Bytes of a checkpoint in bfloat16."""
    return 2 * weight_count(SHAPES[shape])


def main() -> int:
    """Writes what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-30b-a3b")
    parser.add_argument("--work-dir", type=Path, default=WORK, help="where it goes (%(default)s)")
    parser.add_argument("--store", action="store_true", help="as a Coterie store")
    parser.add_argument("--gguf", action="store_true", help="as a GGUF file")
    parser.add_argument("--checkpoint", action="store_true", help="as a bfloat16 checkpoint")
    parser.add_argument("--prompt", type=int, metavar="N", help="print the text of the first N tokens")
    given = parser.parse_args()
    model = FullSizeModel(SHAPES[given.shape])
    files = Files(given.work_dir, given.shape)
    if given.prompt:
        print("".join(map(text_of, model.walk.tokens(0, given.prompt))))
    if given.store:
        write_as_store(files.store, model, given.shape)
    if given.gguf:
        write_as_gguf(files.gguf, model, given.shape)
    if given.checkpoint:
        if checkpoint_nbytes(given.shape) > LARGEST_CHECKPOINT:
            parser.error(f"a checkpoint of {given.shape} has {checkpoint_nbytes(given.shape) / 1e9:.0f} GB: too many.")
        write_as_checkpoint(files.checkpoint, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())

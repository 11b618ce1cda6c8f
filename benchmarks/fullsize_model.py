"""Writes a full-size synthetic model: the same weights as a store, a GGUF file and, of small shapes, a checkpoint.

    python benchmarks/fullsize_model.py --shape qwen3-30b-a3b --store --gguf

Of Qwen3-30B-A3B the store has 20 GB and the GGUF file 17 GB; each takes some minutes and well under 2 GiB of memory.
What an interrupted run has written is kept: the same command goes on. What the model says is known beforehand, see
fullsize/walk.py: ``--prompt N`` prints the first N tokens of it, as text that both engines understand.

A whole Qwen3-Omni, with encoders, talker and vocoder, is a store alone, or a checkpoint of headers over holes:

    python benchmarks/fullsize_model.py --shape qwen3-omni-30b-a3b --store
    python benchmarks/fullsize_model.py --shape qwen3-omni-30b-a3b --hollow
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
from fullsize.omni.configuration import OMNI_SHAPES, thinker
from fullsize.shapes import SHAPES, weight_count
from fullsize.walk import text_of
from harness.options import WORK

LARGEST_CHECKPOINT = 12 * 10**9


def checkpoint_nbytes(shape: str) -> int:
    """Bytes of a checkpoint in bfloat16."""
    return 2 * weight_count(SHAPES[shape])


def write_omni(files: Files, given: argparse.Namespace) -> None:
    """Writes what is asked for of a whole omni model."""
    from fullsize.omni.hollow import write_hollow_checkpoint
    from fullsize.omni.store import write_omni_store

    if given.hollow:
        write_hollow_checkpoint(files.hollow, OMNI_SHAPES[given.shape]())
    if given.store:
        write_omni_store(files.store, given.shape, given.dense_scheme)


def main() -> int:
    """Writes what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=[*SHAPES, *OMNI_SHAPES], default="qwen3-30b-a3b")
    parser.add_argument("--work-dir", type=Path, default=WORK, help="where it goes (%(default)s)")
    parser.add_argument("--store", action="store_true", help="as a Coterie store")
    parser.add_argument(
        "--mixed", action="store_true", help="as a store of 3.5 bits in mixed levels, made of the first"
    )
    parser.add_argument("--gguf", action="store_true", help="as a GGUF file")
    parser.add_argument("--checkpoint", action="store_true", help="as a bfloat16 checkpoint")
    parser.add_argument("--hollow", action="store_true", help="as a checkpoint without weights, of a whole omni model")
    parser.add_argument("--dense-scheme", help="of a whole omni model's store, as coterie extract takes it")
    parser.add_argument("--prompt", type=int, metavar="N", help="print the text of the first N tokens")
    given = parser.parse_args()
    omni = given.shape in OMNI_SHAPES
    if omni and (given.gguf or given.checkpoint or given.mixed):
        parser.error(f"{given.shape} is written as a store, or hollow.")
    if not omni and (given.hollow or given.dense_scheme):
        parser.error("--hollow and --dense-scheme are of whole omni models.")
    model = thinker(OMNI_SHAPES[given.shape]()) if omni else FullSizeModel(SHAPES[given.shape])
    files = Files(given.work_dir, given.shape)
    if given.prompt:
        print("".join(map(text_of, model.walk.tokens(0, given.prompt))))
    if omni:
        write_omni(files, given)
        return 0
    if given.store or given.mixed:
        write_as_store(files.store, model, given.shape)
    if given.mixed:
        from fullsize.mixed import write_mixed

        write_mixed(files.mixed, files.store)
    if given.gguf:
        write_as_gguf(files.gguf, model, given.shape)
    if given.checkpoint:
        if checkpoint_nbytes(given.shape) > LARGEST_CHECKPOINT:
            parser.error(f"a checkpoint of {given.shape} has {checkpoint_nbytes(given.shape) / 1e9:.0f} GB: too many.")
        write_as_checkpoint(files.checkpoint, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())

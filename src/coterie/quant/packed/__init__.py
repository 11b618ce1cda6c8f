"""Weights that checkpoints pack into words: unpacked, and put into the schemes that take them as they are."""

from coterie.quant.packed.float_blocks import FloatBlocks
from coterie.quant.packed.lattice import Lattice
from coterie.quant.packed.transcoding import Rounded, transcode
from coterie.quant.packed.unpacking import some_rows, unpack

__all__ = ["FloatBlocks", "Lattice", "Rounded", "some_rows", "transcode", "unpack"]

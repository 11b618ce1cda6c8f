"""Quantised checkpoints: what transformers calls their tensors, what it makes of them, and which are refused."""

from coterie.hf.quantised.fields import record_fields, record_layout
from coterie.hf.quantised.folded import FoldedNames, PackedNames
from coterie.hf.quantised.names import MXFP4_BLOCKS, MXFP4_SCALES, fold_names, unfold_keymap
from coterie.hf.quantised.packed_names import fold_packed

__all__ = [
    "MXFP4_BLOCKS",
    "MXFP4_SCALES",
    "FoldedNames",
    "PackedNames",
    "fold_names",
    "fold_packed",
    "record_fields",
    "record_layout",
    "unfold_keymap",
]

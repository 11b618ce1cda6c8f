"""Quantised checkpoints: what transformers calls their tensors, what it makes of them, and which are refused."""

from coterie.hf.quantised.fields import record_fields, record_layout
from coterie.hf.quantised.names import MXFP4_BLOCKS, MXFP4_SCALES, FoldedNames, fold_names, unfold_keymap

__all__ = [
    "MXFP4_BLOCKS",
    "MXFP4_SCALES",
    "FoldedNames",
    "fold_names",
    "record_fields",
    "record_layout",
    "unfold_keymap",
]

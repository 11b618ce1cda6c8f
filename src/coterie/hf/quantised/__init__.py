"""Quantised checkpoints: what transformers calls their tensors, what it makes of them, and which are refused."""

from coterie.hf.quantised.fields import (
    FieldSteps,
    decoded_nbytes,
    encoded_names,
    encoding_of,
    plan_fields,
    record_fields,
    record_layout,
)
from coterie.hf.quantised.fp8 import check_grid, dequantise_fp8
from coterie.hf.quantised.mxfp4 import dequantise_mxfp4
from coterie.hf.quantised.names import FoldedNames, fold_names, unfold_keymap

__all__ = [
    "FieldSteps",
    "FoldedNames",
    "check_grid",
    "decoded_nbytes",
    "dequantise_fp8",
    "dequantise_mxfp4",
    "encoded_names",
    "encoding_of",
    "fold_names",
    "plan_fields",
    "record_fields",
    "record_layout",
    "unfold_keymap",
]

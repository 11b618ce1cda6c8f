"""torch's dtypes by the names that safetensors gives them."""

from __future__ import annotations

import torch

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
"""torch's dtype for each name in :data:`coterie.spec.DTYPE_BYTES`."""

SAFETENSORS_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""The other way round."""

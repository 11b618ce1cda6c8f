"""torch's dtypes by the names that safetensors gives them, and tensors as the bytes that files have of them."""

from __future__ import annotations

import torch

from coterie.spec import RecordLayout

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


def record_tensors(record: memoryview, layout: RecordLayout) -> tuple[torch.Tensor, ...]:
    """The fields of a record in memory, in the order of its layout: views of the record, which they keep.

    Args:
        record: Its bytes.
        layout: How it is laid out.
    """
    return tuple(
        torch.frombuffer(record, dtype=torch.uint8, count=place.nbytes, offset=place.offset)
        .view(TORCH_DTYPES[place.dtype])
        .view(place.shape)
        for place in layout.fields
    )


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's elements as a file has them: its own memory if it is contiguous, else a copy."""
    flat: memoryview = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    return flat

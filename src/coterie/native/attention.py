"""Attention of one token, between its linear layers."""

from __future__ import annotations

import torch

from coterie.native.library import Library

_LANES, _MOST_WIDTH = 16, 512


def attention_served(heads: int, kv_heads: int, width: int) -> bool:
    """Whether heads of this width in these numbers are served."""
    return width % _LANES == 0 and width <= _MOST_WIDTH and heads % kv_heads == 0


def rotate(library: Library, heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> None:
    """Rotary embedding of one token in place, ``x * cos + rotate_half(x) * sin``, with the bits of torch's operations.

    Args:
        library: The library.
        heads: bfloat16, contiguous, […, width] of one token; an even width.
        cosine: bfloat16, contiguous, of ``width`` values.
        sine: The same.
    """
    width = heads.shape[-1]
    library.functions.coterie_rotate(
        library.level, heads.data_ptr(), heads.numel() // width, width, cosine.data_ptr(), sine.data_ptr()
    )


def token_attention(
    library: Library, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> torch.Tensor:
    """``softmax(query keysᵀ scale) values`` of one token over all tokens of a cache, bfloat16 [1, 1, heads · width].

    Sums are float32, and rounded once.

    Args:
        library: The library.
        query: bfloat16, contiguous, of heads · width values.
        keys: bfloat16 [1, kv_heads, length, width], tokens side by side.
        values: The same.
        scale: Times the products.
    """
    _, kv_heads, length, width = keys.shape
    heads = query.numel() // width
    out = torch.empty(1, 1, heads * width, dtype=torch.bfloat16, device="cpu")
    scores = torch.empty(heads, length, dtype=torch.float32, device="cpu")
    library.functions.coterie_token_attention(
        library.level,
        library.threads,
        query.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        heads,
        kv_heads,
        width,
        length,
        keys.stride(1),
        values.stride(1),
        scale,
        scores.data_ptr(),
        out.data_ptr(),
    )
    return out

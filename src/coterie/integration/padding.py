"""What a mask of a decode step hides, where that is nothing but padding."""

from __future__ import annotations

import torch


def padding_by(mask: torch.Tensor) -> list[int] | None:
    """How many tokens at the beginning of each row are hidden by a mask [T, 1, 1, tokens]; None if others are."""
    if mask.shape[1:3] != (1, 1):
        return None
    seen = mask[:, 0, 0]
    hidden = seen.int().argmax(dim=1)
    # From the first token that is seen on, all are.
    whole = (seen.sum(dim=1) + hidden == seen.shape[1]) & seen[:, -1]
    return hidden.tolist() if whole.all() else None

"""How well a component predicted the tokens that it is given, read off the logits that it computes anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_SLICE_NBYTES = 64 << 20
"""Memory that float32 copies of a slice of logits take (more only where one row takes more)."""


class LossMeter:
    """Keeps the last logits of one request's forward passes until the tokens come that they predict.

    Letters: B sequences, T new tokens of each, N of these with logits (the last ones), V vocabulary.
    """

    def __init__(self) -> None:
        self._ids_BT: torch.Tensor | None = None
        self._shape = (0, 0)
        self._cached = 0
        self._last_BV: torch.Tensor | None = None
        self._length = 0

    def begin(self, ids_BT: torch.Tensor | None, *, shape: tuple[int, int], cached: int) -> None:
        """A forward pass begins.

        Args:
            ids_BT: The new tokens, or None if they are not known.
            shape: (B, T).
            cached: Tokens before them.
        """
        if self._last_BV is not None and (cached != self._length or self._last_BV.shape[0] != shape[0]):
            self._last_BV = None
        known = ids_BT is not None and tuple(ids_BT.shape) == shape
        self._ids_BT, self._shape, self._cached = ids_BT if known else None, shape, cached

    @torch.inference_mode()
    def end(self, output: object) -> npt.NDArray[np.float32]:
        """The pass has computed this: what is known of the losses of its tokens, float32 [B, T], else NaN."""
        batch, tokens = self._shape
        losses = np.full((batch, tokens), np.nan, np.float32)
        before, ids_BT = self._last_BV, self._ids_BT
        logits = getattr(output, "logits", None)
        fits = isinstance(logits, torch.Tensor) and logits.dim() == 3 and logits.shape[0] == batch
        logits_BNV = logits if isinstance(logits, torch.Tensor) and fits and 0 < logits.shape[1] <= tokens else None
        self._last_BV = None if logits_BNV is None else logits_BNV[:, -1].clone()
        self._length = self._cached + tokens
        if ids_BT is None:
            return losses
        if before is not None:
            losses[:, 0] = _losses(before, ids_BT[:, 0])
        if logits_BNV is not None and logits_BNV.shape[1] > 1:
            predicted = logits_BNV.shape[1] - 1
            for row in range(batch):
                losses[row, tokens - predicted :] = _losses(logits_BNV[row, :-1], ids_BT[row, tokens - predicted :])
        return losses


class RowLosses:
    """The same for the next tokens of several requests in one pass.

    Args:
        meters: Those of the requests, one for each row.
        positions: Tokens of each before the one of this pass.
    """

    def __init__(self, meters: Sequence[LossMeter], positions: Sequence[int]) -> None:
        self._rows = list(zip(meters, positions, strict=True))

    def begin(self, ids_BT: torch.Tensor | None, *, shape: tuple[int, int], cached: int) -> None:
        """As :meth:`LossMeter.begin`, ``cached`` being that of the longest."""
        for row, (meter, position) in enumerate(self._rows):
            meter.begin(None if ids_BT is None else ids_BT[row : row + 1], shape=(1, shape[1]), cached=position)

    def end(self, output: object) -> npt.NDArray[np.float32]:
        """As :meth:`LossMeter.end`."""
        logits = getattr(output, "logits", None)
        whole = isinstance(logits, torch.Tensor) and logits.shape[:1] == (len(self._rows),)
        found = []
        for row, (meter, _) in enumerate(self._rows):
            found.append(meter.end(_Logits(logits[row : row + 1] if whole and logits is not None else None)))
        return np.concatenate(found)


class _Logits(NamedTuple):
    logits: torch.Tensor | None


def _losses(logits_NV: torch.Tensor, ids_N: torch.Tensor) -> npt.NDArray[np.float32]:
    """−log p of tokens in nats, float32 [N]; NaN for one that is not in the vocabulary."""
    count, width = logits_NV.shape
    rows = max(1, _SLICE_NBYTES // (4 * width))
    losses = np.empty(count, np.float32)
    for start in range(0, count, rows):
        ids = ids_N[start : start + rows].to("cpu", torch.int64)
        scores = logits_NV[start : start + rows].to("cpu", torch.float32)
        own = scores.gather(1, ids.clamp(0, width - 1)[:, None]).squeeze(1)
        loss = (scores.logsumexp(dim=1) - own).clamp_(min=0.0)
        losses[start : start + rows] = loss.masked_fill_((ids < 0) | (ids >= width), torch.nan).numpy()
    return losses

"""What each expert adds to the output of its layer, noted while a forward pass computes it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch


class Noted(Protocol):
    """What was noted in one forward pass."""

    def measured(self) -> npt.NDArray[np.float32] | None:
        """float32 [T, K] by the router's choice, NaN where that expert did not compute; None if it is not known."""
        ...


class Written:
    """Noted by a native call that computed every chosen expert.

    Args:
        norms_TK: float32 [T, K], which nobody writes any more.
    """

    def __init__(self, norms_TK: torch.Tensor) -> None:
        self._norms_TK = norms_TK

    def measured(self) -> npt.NDArray[np.float32]:
        """See :class:`Noted`."""
        return self._norms_TK.numpy()


class Contributions:
    """Gate weight × ‖expert output‖₂ of the pairs of one bank in one forward pass.

    Adapters give it the weighted rows as they are added to the layer's output, rounded as they are then.

    Args:
        chosen_TK: The router's choice [T, K].
        routed_TK: What a policy for absent experts made of it, or the same tensor.
        end: The first id that is no expert's.

    Attributes:
        norms_TK: float32 [T, K] by slots of ``routed_TK``, NaN where nothing was noted.
    """

    def __init__(self, chosen_TK: torch.Tensor, routed_TK: torch.Tensor, end: int) -> None:
        self._chosen_TK = chosen_TK
        self._routed_TK = routed_TK
        self._end = end
        self._known = True
        # A tenth of what torch.full takes, for every layer of every token.
        self._array = np.full(tuple(routed_TK.shape), np.nan, np.float32)
        self.norms_TK = torch.from_numpy(self._array)

    def add(self, tokens_N: torch.Tensor, slots_N: torch.Tensor, rows_ND: torch.Tensor) -> None:
        """Notes the weighted rows of one expert, for the choices ``slots_N`` of ``tokens_N``."""
        self.norms_TK[tokens_N, slots_N] = row_norms(rows_ND)

    def add_token(self, rows_KD: torch.Tensor) -> None:
        """Notes all the weighted rows of the only token, in the order of its choices."""
        self.norms_TK[0] = row_norms(rows_KD)

    def leave_out(self) -> None:
        """Forgets what was noted for choices that are left out, where an adapter computes them with weight 0."""
        self.norms_TK.masked_fill_(self._routed_TK >= self._end, torch.nan)

    def give_up(self) -> None:
        """Says that this forward pass cannot tell."""
        self._known = False

    def measured(self) -> npt.NDArray[np.float32] | None:
        """float32 [T, K] by the router's choice, NaN where that expert did not compute; None if it is not known."""
        if not self._known:
            return None
        if self._routed_TK is not self._chosen_TK:
            self.norms_TK.masked_fill_(self._routed_TK != self._chosen_TK, torch.nan)
        return self._array


def row_norms(rows_ND: torch.Tensor) -> torch.Tensor:
    """Euclidean norms of rows, float32 [N]."""
    norms_N: torch.Tensor = torch.linalg.vector_norm(rows_ND.detach().to(torch.float32), dim=-1)
    return norms_N

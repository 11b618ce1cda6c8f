"""What a talker reads of the pictures and sounds in a prompt, which only the thinker's passes over them tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.hf.talker import accepted_layer, media_mask

if TYPE_CHECKING:
    from coterie.generation.sequence import Keeper, Supplied
    from coterie.hf.generation_steps import Positions


class MediaRows:
    """Keeps it while the prompt is computed, beside what else is kept of that.

    Args:
        model: The whole model.
        ids: The prompt, [1, T].
        keeper: Who else keeps something.
    """

    def __init__(self, model: Any, ids: Tensor, keeper: Keeper | None) -> None:
        self._layer = accepted_layer(model)
        self._mask = media_mask(model, ids)[0]
        self._keeper = keeper
        self._rows: list[Tensor] = []

    @property
    def rows(self) -> Tensor:
        """Of each token that stands for a picture or sound, in order: [M, H]."""
        return torch.cat(self._rows)

    @property
    def kept(self) -> int:
        """Tokens of the prompt that are kept for others."""
        return 0 if self._keeper is None else self._keeper.kept

    def supply(self, begin: int) -> Supplied | None:
        """What need not be computed, which is never a picture or sound."""
        return None if self._keeper is None else self._keeper.supply(begin)

    def passed(self, begin: int, end: int, seconds: float, outputs: Any, positions: Positions) -> None:
        """Some of the prompt was computed."""
        self._rows.append(outputs.hidden_states[self._layer][0, self._mask[begin:end]])
        if self._keeper is not None:
            self._keeper.passed(begin, end, seconds, outputs, positions)

    def ended(self, ids: Tensor, position: int) -> Any:
        """The sequence has ended."""
        return None if self._keeper is None else self._keeper.ended(ids, position)

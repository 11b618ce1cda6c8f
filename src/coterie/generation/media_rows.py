"""What a talker reads of the pictures and sounds in a prompt, which only the thinker's passes over them tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.hf.talker import accepted_layer, media_mask

if TYPE_CHECKING:
    from coterie.generation.kept_cache import KeptCache
    from coterie.generation.sequence import Keeper, Supplied
    from coterie.hf.generation_steps import Positions


def all_heard(model: Any, conversation: KeptCache) -> bool:
    """Whether a talker can read all pictures and sounds that a conversation holds; not if others asked meanwhile.

    Args:
        model: The whole model.
        conversation: What its turns go on with.
    """
    return int(media_mask(model, conversation.ids).sum()) == sum(map(len, conversation.heard))


class MediaRows:
    """Keeps it while the prompt is computed, beside what else is kept of that.

    Args:
        model: The whole model.
        ids: The prompt, [1, T].
        keeper: Who else keeps something.
        conversation: What its turns go on with, where it is one: what was kept for earlier turns is read again.
    """

    def __init__(self, model: Any, ids: Tensor, keeper: Keeper | None, conversation: KeptCache | None = None) -> None:
        self._layer = accepted_layer(model)
        self._mask = media_mask(model, ids)[0]
        self._keeper = keeper
        self._conversation = conversation if keeper is not None else None
        self._rows = [] if self._conversation is None else self._conversation.heard

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
        rows = outputs.hidden_states[self._layer][0, self._mask[begin:end]]
        self._rows.append(rows)
        if self._conversation is not None and len(rows):
            self._conversation.hear(end, rows)
        if self._keeper is not None:
            self._keeper.passed(begin, end, seconds, outputs, positions)

    def ended(self, ids: Tensor, position: int) -> Any:
        """The sequence has ended."""
        return None if self._keeper is None else self._keeper.ended(ids, position)

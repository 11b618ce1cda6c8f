"""Experts that a decode step leaves out, because they weigh little and would have to be read.

What is left out depends on what is in memory, and so does the output. Prompts are never touched: there an expert is
read once for many tokens, and what is kept of a prompt has to have the same bits in every answer that begins with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from coterie.cache import ExpertCache
from coterie.routing import Routed, light_choices
from coterie.spec import ExpertKey

_RATE = 0.05
"""What one step counts for in the mean number of a token's experts that are not light."""


class LeftOut(NamedTuple):
    """What :class:`ColdDrop` made of a router's choice.

    Attributes:
        routed: The rest; the same tensors if nothing is left out.
        experts: How many experts are not read.
        nbytes: Bytes of their records.
    """

    routed: Routed
    experts: int
    nbytes: int


class ColdDrop:
    """Leaves out the light experts of a bank that are not in memory.

    An expert is light for a token if its gate weight is below a share of the token's highest. It is left out if it is
    light for every token of the step that chose it, and neither in memory nor on its way there. If one token needs it,
    it is read, and all tokens that chose it get it. The token's other gate weights stay as they are.

    Args:
        share: Of a token's highest gate weight, above 0 and up to 1.
        keys: Key of each expert of the bank.
        none: The id of what is left out.
        cache: Where experts are in memory.
    """

    def __init__(self, share: float, keys: Sequence[ExpertKey], none: int, cache: ExpertCache) -> None:
        self._share = share
        self._keys = keys
        self._none = none
        self._cache = cache
        self._heavy: float | None = None

    @property
    def usual(self) -> int | None:
        """How many of a token's experts are not light, on average and rounded; None before the first step."""
        return None if self._heavy is None else max(1, round(self._heavy))

    def __call__(self, routed: Routed) -> LeftOut:
        """Applies it to a router's choice in one decode step.

        Args:
            routed: int64 ids [T, K] and weights [T, K] of the step's T tokens.
        """
        # Lists: a step has few pairs, and an operation of torch takes longer than going through them.
        rows: list[list[int]] = routed.ids.tolist()
        chosen = {expert for row in rows for expert in row if expert < len(self._keys)}
        if all(self._keys[expert] in self._cache for expert in chosen):
            return LeftOut(routed, 0, 0)
        light_TK = light_choices(routed.ids, routed.weights, none=self._none, min_gate=self._share)
        pairs = [
            pair for row, light in zip(rows, light_TK.tolist(), strict=True) for pair in zip(row, light, strict=True)
        ]
        heavy = [expert for expert, light in pairs if not light]
        self._note(len(heavy) / len(rows))
        to_read = self._cache.to_read([self._keys[expert] for expert in sorted(chosen.difference(heavy))])
        if not to_read:
            return LeftOut(routed, 0, 0)
        gone = {key.expert for key in to_read}
        gone_TK = torch.tensor([[expert in gone for expert in row] for row in rows], device=routed.ids.device)
        left = Routed(
            routed.ids.masked_fill(gone_TK, self._none), routed.weights.masked_fill(gone_TK, 0.0), routed.absent
        )
        return LeftOut(left, len(to_read), sum(to_read.values()))

    def _note(self, heavy: float) -> None:
        before = self._heavy
        # Threads may overwrite one another's: it is a mean of hundreds.
        self._heavy = heavy if before is None else before + _RATE * (heavy - before)

"""How many of the experts that its routers chose a token gets, where that is not left to the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from coterie.errors import UsageError

ADAPTATION_PRESETS: Mapping[str, float] = MappingProxyType({"wake": 0.25, "focus": 0.5, "crisis": 0.75})
"""Name → share of a model's K that the least salient tokens get, rounded up; the most salient ones get all K."""

_GATE = "gate:"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveExperts:
    """How many of its K chosen experts a token gets; the lightest are left out, and the others take over their weight.

    Where ``k_min < k_max``, the salience of the token before decides: if a share r of the saliences before it were
    lower, it is ``k_min + ⌊r · (k_max − k_min + 1)⌋``, and ``k_max`` at most. So about as many tokens get each number,
    whatever the model and text. Tokens of a prompt get ``k_max``: nothing is known before them.

    Attributes:
        k_min: Experts of a token after the least salient ones.
        k_max: Experts of a token after the most salient ones, and of all tokens of prompts; None for the model's K.
        min_gate: Experts whose gate weight is below this share of the token's highest are left out, too, from 0 to 1.

    Raises:
        UsageError: If a number is out of range.
    """

    k_min: int | None = None
    k_max: int | None = None
    min_gate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("k_min", "k_max"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1 expert, not {value}.", got=value)
        if self.k_min is not None and self.k_max is not None and self.k_min > self.k_max:
            raise UsageError(f"k_min={self.k_min} is more than k_max={self.k_max}.", k_min=self.k_min, k_max=self.k_max)
        if not 0.0 <= self.min_gate <= 1.0:
            raise UsageError(f"min_gate is a share between 0 and 1, not {self.min_gate}.", got=self.min_gate)

    @property
    def by_salience(self) -> bool:
        """Whether tokens get different numbers of experts by salience."""
        return self.k_min is not None and self.k_min != self.k_max

    def counts(self, k: int) -> tuple[int, int]:
        """The least and the most experts of a token whose router chose ``k``."""
        most = k if self.k_max is None else min(self.k_max, k)
        return most if self.k_min is None else min(self.k_min, most), most

    @classmethod
    def of(cls, what: str | AdaptiveExperts, k: int) -> AdaptiveExperts:
        """What a name means for a model that chooses ``k`` experts per token.

        Args:
            what: ``wake``, ``focus`` or ``crisis``; ``gate:SHARE`` for ``min_gate``; or one of these objects.
            k: Experts per token.

        Raises:
            UsageError: If there is no such name.
        """
        if isinstance(what, AdaptiveExperts):
            return what
        if what in ADAPTATION_PRESETS:
            return cls(k_min=max(1, math.ceil(ADAPTATION_PRESETS[what] * k)))
        if what.startswith(_GATE):
            try:
                return cls(min_gate=float(what.removeprefix(_GATE)))
            except ValueError:
                raise UsageError(
                    f"{what!r} is no share of the highest gate weight.", advice="Write it like gate:0.2.", got=what
                ) from None
        raise UsageError.unknown("way to adapt experts", what, (*ADAPTATION_PRESETS, "gate:SHARE"))

"""A number of experts, or a share of them, as users write it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from coterie.errors import UsageError

AMOUNT_FORM = "Write it like 24 (experts of each layer), 75%, or by component: thinker=75%,talker=100%."
"""What an error says of how it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """A number of experts, or a share of them.

    Attributes:
        number: The number; None for a share.
        share: The share, above 0 and at most 1; None for a number.
    """

    number: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> Amount:
        """Reads ``24`` or ``75%``.

        Raises:
            UsageError: If it is neither.
        """
        stripped = text.strip()
        try:
            if stripped.endswith("%"):
                share = float(stripped.removesuffix("%")) / 100
                if 0 < share <= 1:
                    return cls(share=share)
            elif (number := int(stripped)) > 0:
                return cls(number=number)
        except ValueError:
            pass
        raise UsageError(f"{text!r} is not a number or share of experts to keep.", advice=AMOUNT_FORM, got=text)

    def of(self, experts: int) -> int:
        """How many of so many experts."""
        return self.number if self.number is not None else math.ceil(round((self.share or 1) * experts, 6))

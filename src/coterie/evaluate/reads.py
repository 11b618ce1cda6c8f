"""What a model read of its experts while it was evaluated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.engine import ModelStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """What was read in computing tokens one by one.

    Attributes:
        tokens: Tokens that were predicted.
        requested: Experts that layers asked for, added up over tokens.
        hits: Of these, found in memory.
        bytes_read: Bytes read from disk.
        left_out: Experts that were left out because of ``drop_cold``; not among those requested.
        bytes_not_read: Bytes of their records.
        capacity: Bytes that experts could take in memory.
        total_expert_bytes: Bytes of all experts.
    """

    tokens: int
    requested: int
    hits: int
    bytes_read: int
    left_out: int
    bytes_not_read: int
    capacity: int
    total_expert_bytes: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes read for each token, mean."""
        return self.bytes_read / self.tokens

    @property
    def hit_rate(self) -> float:
        """Share of the experts asked for that were in memory; 0 if none was asked for."""
        return self.hits / self.requested if self.requested else 0.0

    @classmethod
    def between(cls, before: ModelStats, after: ModelStats, tokens: int) -> Reads:
        """What was read between two moments.

        Args:
            before: What had been counted before.
            after: What had been counted after.
            tokens: How many were predicted meanwhile.
        """
        counted = ("requested", "hits", "bytes_read", "left_out", "bytes_not_read")
        return cls(
            tokens=tokens,
            capacity=after.capacity,
            total_expert_bytes=after.total_expert_bytes,
            **{name: getattr(after.total, name) - getattr(before.total, name) for name in counted},
        )

    @classmethod
    def total(cls, parts: Iterable[Reads | None]) -> Reads | None:
        """All of them together; None if there are none, or one is not known."""
        found = list(parts)
        known = [part for part in found if part is not None]
        if not known or len(known) < len(found):
            return None
        last = {name: getattr(known[-1], name) for name in ("capacity", "total_expert_bytes")}
        sums = {
            field.name: sum(getattr(part, field.name) for part in known)
            for field in fields(cls)
            if field.name not in last
        }
        return cls(**sums, **last)

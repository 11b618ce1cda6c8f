"""The heaviest tokens of each expert, in bounded memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coterie.profiles.facts import Counts, TokenCounts

_SHIFT = 32
_MASK = (1 << _SHIFT) - 1
_LEAST_PENDING = 8192


class TokenSketch:
    """Counts of (expert, token id) for the experts of one bank: exact until an expert has more tokens than fit.

    The summary of Misra & Gries ("Finding repeated elements", 1982) for each expert, folded batch by batch as Agarwal
    and others merge such summaries ("Mergeable summaries", ACM TODS 38, 2013): after counts of a batch are added, the
    (capacity + 1)-largest count is subtracted from all and what is not positive is dropped. A count is never too high,
    and too low by at most what was subtracted, which is at most the expert's activations / (capacity + 1).

    Args:
        experts: E.
        capacity: Tokens kept per expert; None keeps all.
    """

    def __init__(self, experts: int, capacity: int | None) -> None:
        self._experts = experts
        self._capacity = capacity
        self._codes = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._dropped = np.zeros(experts, np.int64)
        self._pending: list[npt.NDArray[np.int64]] = []
        self._pending_size = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 8 * (2 * len(self._codes) + self._pending_size + self._experts)

    @property
    def most_nbytes(self) -> int:
        """Bytes held at most while it counts, waiting codes included; without a capacity, for the tokens so far."""
        kept = len(self._codes) if self._capacity is None else self._experts * self._capacity
        return 8 * (4 * kept + 3 * self._limit + self._experts)

    @property
    def _limit(self) -> int:
        return max(_LEAST_PENDING, self._experts * (self._capacity or 0) // 2)

    def update(self, experts: npt.NDArray[np.integer], tokens: npt.NDArray[np.integer]) -> None:
        """Counts pairs.

        Args:
            experts: [n] expert ids below E.
            tokens: [n] token ids, 0 ≤ id < 2³².
        """
        if not len(experts):
            return
        self._pending.append((experts.astype(np.int64) << _SHIFT) | tokens.astype(np.int64))
        self._pending_size += len(experts)
        if self._pending_size >= self._limit:
            self._fold()

    def _fold(self) -> None:
        if not self._pending:
            return
        codes, counts = np.unique(np.concatenate(self._pending), return_counts=True)
        self._pending, self._pending_size = [], 0
        self._codes, self._counts = add_counts(self._codes, self._counts, codes, counts.astype(np.int64))
        if self._capacity is not None and len(self._codes) > self._capacity:
            self._trim(self._capacity)

    def _trim(self, capacity: int) -> None:
        """Subtracts from each expert's counts the largest one that does not fit."""
        experts = self._codes >> _SHIFT
        order = np.lexsort((-self._counts, experts))
        starts = np.searchsorted(experts, np.arange(self._experts))
        # Codes are sorted, so an expert's entries stand together, before and after ordering by count.
        rank = np.arange(len(order)) - starts[experts[order]]
        first_out = order[rank == capacity]
        threshold = np.zeros(self._experts, np.int64)
        threshold[experts[first_out]] = self._counts[first_out]
        self._dropped += threshold
        counts = self._counts - threshold[experts]
        self._codes, self._counts = self._codes[counts > 0], counts[counts > 0]

    def load(self, state: TokenCounts) -> None:
        """Goes on from a state that :meth:`state` gave."""
        self._codes = (state.experts.astype(np.int64) << _SHIFT) | state.tokens.astype(np.int64)
        self._counts = state.counts.astype(np.int64)
        self._dropped = state.dropped.astype(np.int64)
        self._pending, self._pending_size = [], 0

    def state(self, segments: int) -> TokenCounts:
        """What is counted so far.

        Args:
            segments: Segments of the run that are in it.
        """
        self._fold()
        return TokenCounts(
            segments=segments,
            experts=(self._codes >> _SHIFT).astype(np.uint16),
            tokens=(self._codes & _MASK).astype(np.uint32),
            counts=self._counts.copy(),
            dropped=self._dropped.copy(),
        )


def add_counts(codes: Counts, counts: Counts, more_codes: Counts, more_counts: Counts) -> tuple[Counts, Counts]:
    """Sums counts by code; the codes come out ascending, each once."""
    if not len(codes):
        codes, counts = more_codes, more_counts
    else:
        codes, counts = np.concatenate([codes, more_codes]), np.concatenate([counts, more_counts])
    if not len(codes):
        return codes, counts
    order = np.argsort(codes, kind="stable")
    codes, counts = codes[order], counts[order]
    starts = np.flatnonzero(np.diff(codes, prepend=codes[0] - 1))
    return codes[starts], np.add.reduceat(counts, starts)

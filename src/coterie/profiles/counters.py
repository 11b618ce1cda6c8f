"""Counters of one bank while a model runs: buffers for single tokens, folded into arrays by the hundred."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from coterie.profiles.facts import BankCounts, BankShape, Counts, Group, GroupCounts, Sums
from coterie.profiles.sketch import TokenSketch

NO_EXPERT = 65535
NO_TOKEN = -1


class BankCounters:
    """Counts what one bank's router chooses.

    :meth:`add` copies rows into buffers of a fixed size, some microseconds a call; :meth:`fold` counts them all at
    once, about 2 µs a token and expert. Memory is E × groups × 32 bytes for counters, E² × 4 for pairs, and
    ``buffer_tokens`` × (10 K + 5) for the buffers; sketches of tokens have bounds of their own.

    Args:
        shape: The bank.
        buffer_tokens: Rows of the buffers.
        first_fold: Rows after which a segment's first rows are counted. If banks differ in it, their work is spread
            over many steps of generation.
        pairs: Whether pairs of experts are counted.
        sketch: Where tokens are counted by expert; None to leave them out.
        totals: Where tokens are counted by themselves; None if another bank does.
    """

    def __init__(
        self,
        shape: BankShape,
        *,
        buffer_tokens: int,
        first_fold: int,
        pairs: bool,
        sketch: TokenSketch | None,
        totals: TokenSketch | None,
    ) -> None:
        self.shape = shape
        self.sketch = sketch
        self.totals = totals
        rows, width = buffer_tokens, shape.top_k
        self._ids = np.empty((rows, width), np.uint16)
        self._weights = np.empty((rows, width), np.float32)
        self._contributions = np.empty((rows, width), np.float32)
        self._groups = np.empty(rows, np.uint8)
        self._token_ids = np.empty(rows, np.int32)
        self._filled = 0
        self._first_fold = self._limit = first_fold
        self._pairs = np.zeros(shape.experts**2, np.uint32) if pairs else None
        self._above = np.triu_indices(width, 1)
        self._reset(1)

    def _reset(self, groups: int) -> None:
        self.seen = 0
        experts = self.shape.experts
        self._tokens = np.zeros(groups, np.int64)
        self._entropy = np.zeros((2, groups))
        self._counts: dict[str, Counts] = {
            name: np.zeros((groups, experts), np.int64) for name in ("activations", "reap_counts")
        }
        self._sums: dict[str, Sums] = {name: np.zeros((groups, experts)) for name in ("gate_mass", "reap_sum")}
        if self._pairs is not None:
            self._pairs[:] = 0

    @property
    def nbytes(self) -> int:
        """Bytes held, the sketch's bound included."""
        buffers = (self._ids, self._weights, self._contributions, self._groups, self._token_ids)
        held = sum(buffer.nbytes for buffer in buffers)
        held += sum(array.nbytes for array in self._counts.values())
        held += sum(array.nbytes for array in self._sums.values())
        held += 0 if self._pairs is None else self._pairs.nbytes
        held += 0 if self.sketch is None else self.sketch.most_nbytes
        return held + (0 if self.totals is None else self.totals.most_nbytes)

    def add(
        self,
        expert_ids: npt.NDArray[np.uint16],
        weights: npt.NDArray[np.float32],
        contributions: npt.NDArray[np.float32] | None,
        groups: npt.NDArray[np.uint8] | int,
        token_ids: npt.NDArray[np.integer] | int | None,
    ) -> None:
        """Takes rows of T tokens; shapes as in :meth:`coterie.profiles.Accumulator.add`."""
        tokens, width = expert_ids.shape
        first = 0
        while first < tokens:
            if self._filled == self._limit:
                self.fold()
            count = min(tokens - first, self._limit - self._filled)
            source, target = slice(first, first + count), slice(self._filled, self._filled + count)
            if width < self.shape.top_k:
                self._ids[target, width:] = NO_EXPERT
                self._weights[target, width:] = 0
                self._contributions[target, width:] = np.nan
            self._ids[target, :width] = expert_ids[source]
            self._weights[target, :width] = weights[source]
            self._contributions[target, :width] = np.nan if contributions is None else contributions[source]
            self._groups[target] = groups if isinstance(groups, int) else groups[source]
            self._token_ids[target] = (
                NO_TOKEN if token_ids is None else token_ids if isinstance(token_ids, int) else token_ids[source]
            )
            self._filled += count
            self.seen += count
            first += count

    def fold(self) -> None:
        """Counts what is in the buffers and empties them."""
        rows, self._filled = self._filled, 0
        self._limit = len(self._ids)
        if not rows:
            return
        experts = self.shape.experts
        # What is no expert's id counts in a column of its own, which is left out.
        columns = np.minimum(self._ids[:rows], experts).astype(np.intp)
        groups = self._groups[:rows].astype(np.intp)
        self._make_room(int(groups.max()) + 1)
        self._fold_groups(columns, groups, rows)
        if self._pairs is not None and columns.shape[1] > 1:
            self._fold_pairs(columns)
        self._fold_tokens(columns, self._token_ids[:rows])

    def _make_room(self, groups: int) -> None:
        have = len(self._tokens)
        if groups > have:
            more = ((0, groups - have), (0, 0))
            self._tokens = np.pad(self._tokens, (0, groups - have))
            self._entropy = np.pad(self._entropy, ((0, 0), (0, groups - have)))
            self._counts = {name: np.pad(array, more) for name, array in self._counts.items()}
            self._sums = {name: np.pad(array, more) for name, array in self._sums.items()}

    def _fold_groups(self, columns: npt.NDArray[np.intp], groups: npt.NDArray[np.intp], rows: int) -> None:
        count, experts = len(self._tokens), self.shape.experts
        cells = (groups[:, None] * (experts + 1) + columns).ravel()
        size = count * (experts + 1)
        weights = self._weights[:rows]

        def by_expert(values: npt.NDArray[np.float32] | None, where: npt.NDArray[np.intp]) -> Sums:
            found = np.bincount(where, values, minlength=size).reshape(count, experts + 1)
            return found[:, :experts].astype(np.float64)

        activations = by_expert(None, cells).astype(np.int64)
        self._counts["activations"] += activations
        self._sums["gate_mass"] += by_expert(weights.ravel(), cells)
        contributions = self._contributions[:rows].ravel()
        measured = ~np.isnan(contributions)
        if measured.any():
            cells, contributions = cells[measured], contributions[measured]
            self._sums["reap_sum"] += by_expert(contributions, cells)
            self._counts["reap_counts"] += by_expert(None, cells).astype(np.int64)
        self._tokens += np.bincount(groups, minlength=count)
        entropy = gate_entropy(weights)
        self._entropy[0] += np.bincount(groups, entropy, minlength=count)
        self._entropy[1] += np.bincount(groups, entropy**2, minlength=count)

    def _fold_pairs(self, columns: npt.NDArray[np.intp]) -> None:
        assert self._pairs is not None
        ordered = np.sort(columns, axis=1)
        low, high = ordered[:, self._above[0]], ordered[:, self._above[1]]
        # Equal ids are a substitute that stands in twice, not a pair.
        valid = (high < self.shape.experts) & (low < high)
        np.add.at(self._pairs, (low * self.shape.experts + high)[valid], np.uint32(1))

    def _fold_tokens(self, columns: npt.NDArray[np.intp], token_ids: npt.NDArray[np.int32]) -> None:
        known = token_ids != NO_TOKEN
        if not known.any():
            return
        if self.totals is not None:
            self.totals.update(np.zeros(int(known.sum()), np.int64), token_ids[known])
        if self.sketch is not None:
            selected = (columns < self.shape.experts) & known[:, None]
            self.sketch.update(columns[selected], np.broadcast_to(token_ids[:, None], columns.shape)[selected])

    def take(self, groups: Sequence[Group]) -> BankCounts | None:
        """What was counted since the last call, as facts; counters begin at zero again. None if nothing was."""
        self.fold()
        if not self.seen:
            return None
        pairs = None
        if self._pairs is not None:
            experts = self.shape.experts
            pairs = self._pairs.reshape(experts, experts)[np.triu_indices(experts, 1)].astype(np.int64)
        found = [
            GroupCounts(
                group=groups[index],
                tokens=int(self._tokens[index]),
                entropy_sum=float(self._entropy[0, index]),
                entropy_squares=float(self._entropy[1, index]),
                activations=self._counts["activations"][index],
                gate_mass=self._sums["gate_mass"][index],
                reap_sum=self._sums["reap_sum"][index],
                reap_counts=self._counts["reap_counts"][index],
            )
            for index in np.flatnonzero(self._tokens).tolist()
        ]
        self._reset(len(self._tokens))
        self._limit = self._first_fold
        found.sort(key=lambda counts: counts.group)
        return BankCounts(bank=self.shape.bank, groups=tuple(found), pairs=pairs)


def gate_entropy(weights: npt.NDArray[np.float32]) -> Sums:
    """Entropy of each row of gate weights [T, K] scaled to 1, in nats; 0 for a row without weight.

    It is over the experts that were selected, not over all: routers hand on no more.
    """
    weights = np.maximum(weights, 0).astype(np.float64)
    sums = weights.sum(axis=1, keepdims=True)
    shares = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: Sums = -(shares * logs).sum(axis=1)
    return entropy

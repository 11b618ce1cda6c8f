"""A profile in memory: counters of one model as arrays, ready for questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select

from coterie.errors import ProfileFormatError, ProfileNotFoundError, UsageError
from coterie.profiles import tables
from coterie.profiles.database import ProfileDatabase
from coterie.profiles.facts import MODALITIES, PHASES, BankShape, Counts, Group, RunFacts, Sums
from coterie.profiles.inference import Sample, block_numbers
from coterie.profiles.packing import unpack_counts, unpack_sums
from coterie.profiles.reading import RunRows, known, read_groups, read_runs
from coterie.profiles.rows import checked_rows
from coterie.spec import BankKey

Numbers = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class BankTable:
    """Counters of one bank: a row for each group in each segment, in order of the segments.

    Attributes:
        shape: The bank; ``top_k`` is the largest of its runs.
        segments: [R] index of the segment among all of the profile, by run and number; ascending.
        groups: [R] index of the group in :attr:`Profile.groups`.
        tokens: int64 [R].
        entropy_sum: float64 [R] sum of gate entropies, in nats.
        entropy_squares: float64 [R] sum of their squares.
        activations: int64 [R, E].
        gate_mass: float64 [R, E].
        reap_sum: float64 [R, E].
        reap_counts: int64 [R, E].
    """

    shape: BankShape
    segments: Numbers
    groups: Numbers
    tokens: Counts
    entropy_sum: Sums
    entropy_squares: Sums
    activations: Counts
    gate_mass: Sums
    reap_sum: Sums
    reap_counts: Counts

    def rows(self, wanted: npt.NDArray[np.bool_]) -> Numbers:
        """Rows of the groups that a mask over all groups names."""
        return np.flatnonzero(wanted[self.groups])

    def sample(self, rows: Numbers) -> Sample:
        """Activations of these rows by block of consecutive segments."""
        if not len(rows):
            return Sample(np.zeros(0), np.zeros((0, self.shape.experts)))
        starts = np.flatnonzero(np.diff(self.segments[rows], prepend=-1))
        tokens = np.add.reduceat(self.tokens[rows], starts)
        hits = np.add.reduceat(self.activations[rows], starts, axis=0)
        begins = np.flatnonzero(np.diff(block_numbers(tokens), prepend=-1))
        return Sample(
            np.add.reduceat(tokens, begins).astype(np.float64),
            np.add.reduceat(hits, begins, axis=0).astype(np.float64),
        )


class Profile:
    """What is known of the experts of one model.

    Attributes:
        identity: Fingerprint of the model.
        model: Its name.
        model_class: Its transformers class.
        runs: Its runs, by UUID.
        segments: (index of the run, number of the segment), in order.
        groups: All groups of tokens, in order.
        banks: Bank → counters, in order.
    """

    def __init__(
        self,
        runs: Sequence[RunFacts],
        segments: Sequence[tuple[int, int]],
        groups: Sequence[Group],
        banks: dict[BankKey, BankTable],
    ) -> None:
        """Made by :meth:`read`."""
        newest = max(runs, key=lambda run: (run.started, run.uuid))
        self.identity = newest.identity
        self.model = newest.model
        self.model_class = newest.model_class
        self.runs = tuple(runs)
        self.segments = tuple(segments)
        self.groups = tuple(groups)
        self.banks = banks

    @classmethod
    def read(cls, database: ProfileDatabase, identity: str | None = None) -> Profile:
        """Reads the counters of a model, but those of pairs and tokens, which stay in the database.

        Args:
            database: Where from.
            identity: Fingerprint of the model, or its beginning. Default: the only one there is.

        Raises:
            ProfileNotFoundError: If nothing was recorded.
            ProfileIdentityError: If the profile is about another model.
            UsageError: If it is about several, and ``identity`` does not say which.
        """
        which = database.identity(identity)
        with database.reading() as connection:
            runs = read_runs(connection, which)
            segments, groups, rows = _read_rows(connection, runs)
        if not any(rows.values()):
            raise ProfileNotFoundError(
                f"{database.name} has runs of {which}, but nothing was counted in them.", path=database.name
            )
        shapes = bank_shapes(runs)
        banks = {key: _bank_table(shapes[key], rows[key]) for key in sorted(shapes) if rows[key]}
        return cls([run.facts for run in runs], segments, groups, banks)

    @classmethod
    def open(cls, where: str | Path, identity: str | None = None) -> Profile:
        """Opens a database, reads it and closes it; arguments and errors as of both."""
        with ProfileDatabase(where) as database:
            return cls.read(database, identity)

    @property
    def domains(self) -> dict[str, int]:
        """Names of domains → tokens, in order of the names."""
        return self._totals(lambda group: group.domain)

    @property
    def modalities(self) -> dict[str, int]:
        """Modalities → tokens."""
        return self._totals(lambda group: group.modality)

    @property
    def tokens(self) -> int:
        """Tokens in all: for each group, those of the bank that saw most of it."""
        return sum(self.group_tokens.values())

    @property
    def group_tokens(self) -> dict[Group, int]:
        """Groups → tokens, of the bank that saw most of each."""
        most = np.zeros(len(self.groups), np.int64)
        for table in self.banks.values():
            most = np.maximum(most, np.bincount(table.groups, table.tokens, len(self.groups)).astype(np.int64))
        return dict(zip(self.groups, most.tolist(), strict=True))

    def _totals(self, name: Callable[[Group], str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for group, tokens in self.group_tokens.items():
            found[name(group)] = found.get(name(group), 0) + tokens
        return dict(sorted(found.items()))

    def where(
        self, *, domain: str | None = None, modality: str | None = None, phase: str | None = None
    ) -> npt.NDArray[np.bool_]:
        """The groups of these names, as a mask over :attr:`groups`. None means any.

        Raises:
            UsageError: For a name of which nothing was recorded; lists those there are, the nearest first.
        """
        if domain is not None and domain not in self.domains:
            raise UsageError.unknown("domain", domain, self.domains)
        if modality is not None and modality not in self.modalities:
            known = modality in MODALITIES
            raise UsageError.unknown("modality of this profile" if known else "modality", modality, self.modalities)
        if phase is not None and phase not in PHASES:
            raise UsageError.unknown("phase", phase, PHASES)
        return np.array(
            [
                domain in (None, group.domain) and modality in (None, group.modality) and phase in (None, group.phase)
                for group in self.groups
            ],
            dtype=np.bool_,
        )

    def tables(self, component: str | None = None) -> Iterator[BankTable]:
        """The banks of a component, or all.

        Raises:
            UsageError: For a component that is not there.
        """
        components = {key.component for key in self.banks}
        if component is not None and component not in components:
            raise UsageError.unknown("component", component, components)
        for key, table in self.banks.items():
            if component in (None, key.component):
                yield table


def bank_shapes(runs: Sequence[RunRows]) -> dict[BankKey, BankShape]:
    """The banks of a model's runs, each with the largest top-k.

    Raises:
        ProfileFormatError: If a bank has not the same number of experts in all of them.
    """
    found: dict[BankKey, BankShape] = {}
    for run in runs:
        for shape in run.facts.banks:
            known = found.setdefault(shape.bank, shape)
            if known.experts != shape.experts:
                raise ProfileFormatError(
                    f"{shape.bank} has {known.experts} experts in one run and {shape.experts} in run {run.facts.uuid}, "
                    "but both are said to be of one model.",
                    run=run.facts.uuid,
                )
            if shape.top_k > known.top_k:
                found[shape.bank] = shape
    return found


def _read_rows(
    connection: Connection, runs: Sequence[RunRows]
) -> tuple[list[tuple[int, int]], list[Group], dict[BankKey, list[tuple[int, int, Any]]]]:
    """All segments, all groups that have counters, and for each bank (segment, group, row), in order of both."""
    counts = tables.counts
    groups = read_groups(connection)
    found: list[tuple[int, int, BankKey, Any]] = []
    for place, run in enumerate(runs):
        names = {number: key for key, number in run.bank_ids.items()}
        query = select(counts).where(counts.c.run_id == run.id)
        what = f"counters of run {run.facts.uuid}"
        found += [(place, row.segment, known(names, row.bank_id, what), row) for row in checked_rows(connection, query)]
    used = sorted({known(groups, row.group_id, "counters") for *_, row in found})
    # Numbers of rows differ from one copy of a profile to another; names, and sums in the order of names, do not.
    order = {number: used.index(group) for number, group in groups.items() if group in set(used)}
    segments = sorted({(place, number) for place, number, *_ in found})
    index = {segment: position for position, segment in enumerate(segments)}
    by_bank: dict[BankKey, list[tuple[int, int, Any]]] = {shape.bank: [] for run in runs for shape in run.facts.banks}
    for place, number, key, row in found:
        by_bank[key].append((index[place, number], order[row.group_id], row))
    for rows in by_bank.values():
        rows.sort(key=lambda item: item[:2])
    return segments, used, by_bank


def _bank_table(shape: BankShape, rows: list[tuple[int, int, Any]]) -> BankTable:
    what, experts = f"counters of {shape.bank}", shape.experts

    def counts(name: str) -> Counts:
        packed = [row._mapping[name] for *_, row in rows]
        if all(len(data) == 4 * experts for data in packed):
            return unpack_counts(b"".join(packed), len(rows) * experts, what).reshape(len(rows), experts)
        return np.stack([unpack_counts(data, experts, what) for data in packed])

    def sums(name: str) -> Sums:
        packed = [row._mapping[name] for *_, row in rows]
        if any(len(data) != 8 * experts for data in packed):
            raise ProfileFormatError(f"The profile is damaged: {what}: a row is cut off.")
        return unpack_sums(b"".join(packed), len(rows) * experts, what).reshape(len(rows), experts)

    tokens, activations = np.array([row.tokens for *_, row in rows], dtype=np.int64), counts("activations")
    if (tokens < 1).any() or (activations > tokens[:, None]).any():
        raise ProfileFormatError(
            f"The profile is damaged: {what}: an expert was chosen more often than there were tokens."
        )
    return BankTable(
        shape=shape,
        segments=np.array([segment for segment, _, _ in rows], dtype=np.intp),
        groups=np.array([group for _, group, _ in rows], dtype=np.intp),
        tokens=tokens,
        entropy_sum=np.array([row.entropy_sum for *_, row in rows]),
        entropy_squares=np.array([row.entropy_squares for *_, row in rows]),
        activations=activations,
        reap_counts=counts("reap_counts"),
        gate_mass=sums("gate_mass"),
        reap_sum=sums("reap_sum"),
    )

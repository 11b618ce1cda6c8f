"""How often each expert will be used, as far as a profile tells: one row of sums for each group of tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select

from coterie.errors import ProfileFormatError, ProfileNotFoundError, UsageError
from coterie.profiles import tables
from coterie.profiles.database import ProfileDatabase
from coterie.profiles.facts import MODALITIES, BankShape, Counts, Group, Sums
from coterie.profiles.packing import unpack_counts, unpack_sums
from coterie.profiles.profile import bank_shapes
from coterie.profiles.reading import known, read_groups, read_runs
from coterie.profiles.rows import checked_rows
from coterie.spec import BankKey, ExpertKey

Measure = Literal["activations", "gate_mass"]
"""What counts as use: being chosen, or the weight that an expert was chosen with."""

Floats = npt.NDArray[np.float64]

PRIOR_TOKENS = 64
"""m: tokens of a selection that count as much as everything else that was recorded."""

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class BankUsage:
    """Counters of one bank, summed up over runs and segments; G groups, E experts.

    Attributes:
        shape: The bank.
        tokens: int64 [G].
        activations: int64 [G, E].
        gate_mass: float64 [G, E].
        reap_sum: float64 [G, E].
        reap_counts: int64 [G, E].
    """

    shape: BankShape
    tokens: Counts
    activations: Counts
    gate_mass: Sums
    reap_sum: Sums
    reap_counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedUse:
    """How much each expert is expected to be used.

    Attributes:
        identity: Fingerprint of the model.
        domain: Of this domain; None for all.
        modalities: Of these modalities; None for all.
        rates: Bank → [E] use per token.
    """

    identity: str
    domain: str | None
    modalities: tuple[str, ...] | None
    rates: Mapping[BankKey, Floats]

    def values(self) -> dict[ExpertKey, float]:
        """Expert → use per token."""
        return {key.expert(e): rate for key, rates in self.rates.items() for e, rate in enumerate(rates.tolist())}

    def order(self, nbytes: Mapping[ExpertKey, int]) -> list[ExpertKey]:
        """The experts with a size, the largest expected use per byte first; ties by key.

        Args:
            nbytes: Expert → bytes that it takes. Those of banks that the profile does not know are left out.
        """
        known = self.values()
        worth = {key: known[key] / size for key, size in nbytes.items() if key in known}
        return sorted(worth, key=lambda key: (-worth[key], key))


class Usage:
    """What a profile says about use, in little memory: some arrays of experts × groups.

    Attributes:
        identity: Fingerprint of the model.
        model: Its name.
        groups: All groups of tokens, in order.
        banks: Bank → counters, in order.
    """

    def __init__(self, identity: str, model: str, groups: Iterable[Group], banks: Mapping[BankKey, BankUsage]) -> None:
        self.identity = identity
        self.model = model
        self.groups = tuple(groups)
        self.banks = dict(sorted(banks.items()))

    @classmethod
    def read(cls, database: ProfileDatabase, identity: str | None = None) -> Usage:
        """Sums up the counters of a model.

        Args:
            database: Where from.
            identity: Fingerprint of the model, or its beginning. Default: the only one there is.

        Raises:
            ProfileNotFoundError: If nothing was recorded.
            ProfileIdentityError: If the profile is about another model.
            ProfileFormatError: If it is damaged.
            UsageError: If it is about several, and ``identity`` does not say which.
        """
        which = database.identity(identity)
        with database.reading() as connection:
            runs = read_runs(connection, which)
            shapes = bank_shapes(runs)
            names = {number: key for run in runs for key, number in run.bank_ids.items()}
            groups = read_groups(connection)
            sums = _sums(connection, which, names, groups)
        used = sorted({group for by_group in sums.values() for group in by_group})
        if not used:
            raise ProfileNotFoundError(
                f"{database.name} has runs of {which}, but nothing was counted in them.", path=database.name
            )
        banks = {key: _table(shapes[key], by_group, used) for key, by_group in sums.items()}
        newest = max((run.facts for run in runs), key=lambda run: (run.started, run.uuid))
        return cls(which, newest.model, used, banks)

    @classmethod
    def open(cls, where: str | Path, identity: str | None = None) -> Usage:
        """Opens a database, reads it and closes it; arguments and errors as of both."""
        with ProfileDatabase(where) as database:
            return cls.read(database, identity)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of domains, in order."""
        return tuple(sorted({group.domain for group in self.groups}))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities, in order."""
        return tuple(sorted({group.modality for group in self.groups}))

    def where(self, domain: str | None = None, modalities: Collection[str] | None = None) -> npt.NDArray[np.bool_]:
        """The groups of a domain and of any of these modalities, as a mask; None means all.

        Raises:
            UsageError: For a name of which nothing was recorded; lists those there are, the nearest first.
        """
        if domain is not None and domain not in self.domains:
            raise UsageError.unknown("domain", domain, self.domains)
        for modality in modalities or ():
            if modality not in self.modalities:
                what = "modality of this profile" if modality in MODALITIES else "modality"
                raise UsageError.unknown(what, modality, self.modalities)
        return np.array(
            [
                domain in (None, group.domain) and (modalities is None or group.modality in modalities)
                for group in self.groups
            ],
            dtype=np.bool_,
        )

    def expected(
        self,
        *,
        domain: str | None = None,
        modalities: Collection[str] | None = None,
        measure: Measure = "activations",
    ) -> ExpectedUse:
        """The expected use of every expert by a token of a domain and of some modalities.

        It is ``(U_D + m · U / N) / (N_D + m)``, where U is the use of an expert by all N tokens recorded in its bank,
        U_D that by the N_D selected ones, and m = 64: where little was recorded of a selection, everything counts.

        Args:
            domain: Such as ``code``; None for all.
            modalities: Such as ``{"text", "image"}``; None for all.
            measure: What counts as use.

        Raises:
            UsageError: For a name of which nothing was recorded.
        """
        rows = self.where(domain, modalities)
        rates = {}
        for key, bank in self.banks.items():
            use: Floats = (bank.activations if measure == "activations" else bank.gate_mass).astype(np.float64)
            overall = use.sum(axis=0) / bank.tokens.sum()
            rates[key] = (use[rows].sum(axis=0) + PRIOR_TOKENS * overall) / (bank.tokens[rows].sum() + PRIOR_TOKENS)
        chosen = None if modalities is None else tuple(sorted(modalities))
        return ExpectedUse(identity=self.identity, domain=domain, modalities=chosen, rates=rates)

    def likeliest_domain(
        self, activations: Mapping[BankKey, Counts], modalities: Collection[str] | None = None
    ) -> str | None:
        """The domain whose experts these are: the one under which these activations are the most likely.

        Activations count as independent draws from each bank's experts, all domains as equally likely beforehand.

        Args:
            activations: Bank → [E] how often each expert was chosen. Banks that the profile does not know are ignored.
            modalities: Compare domains by tokens of these only.

        Returns:
            Its name; None if nothing is known of any of the banks.
        """
        known = {key: counts for key, counts in activations.items() if key in self.banks and counts.any()}
        if not known:
            return None
        rows = self.where(None, modalities)
        names = sorted({group.domain for group, taken in zip(self.groups, rows, strict=True) if taken})

        def likelihood(domain: str) -> float:
            rates = self.expected(domain=domain, modalities=modalities).rates
            # Half an activation each: what was never seen is unlikely, not impossible.
            shares = {key: rates[key] + 0.5 / max(1, self._tokens(key)) for key in known}
            return sum(float(counts @ np.log(shares[key] / shares[key].sum())) for key, counts in known.items())

        return max(names, key=likelihood)

    def _tokens(self, bank: BankKey) -> int:
        return int(self.banks[bank].tokens.sum())


def _sums(
    connection: Connection, identity: str, names: Mapping[int, BankKey], groups: Mapping[int, Group]
) -> dict[BankKey, dict[Group, list[Any]]]:
    """Bank → group → [tokens, activations, gate mass, REAP sums, REAP counts]; few rows are in memory at a time."""
    counts, runs = tables.counts, tables.runs
    columns = (counts.c.bank_id, counts.c.group_id, counts.c.tokens, counts.c.activations, counts.c.gate_mass)
    query = (
        select(*columns, counts.c.reap_sum, counts.c.reap_counts, tables.banks.c.experts)
        .join(runs, runs.c.id == counts.c.run_id)
        .join(tables.banks, tables.banks.c.id == counts.c.bank_id)
        .where(runs.c.identity == identity)
        # Sums of floating point are the same in every copy of a profile if their order is.
        .order_by(runs.c.uuid, counts.c.segment, counts.c.bank_id)
    )
    found: dict[BankKey, dict[Group, list[Any]]] = {}
    for row in checked_rows(connection, query, at_once=_ROWS_AT_ONCE):
        key, experts = known(names, row.bank_id, "counters"), row.experts
        what = f"counters of {key}"
        values = [
            row.tokens,
            unpack_counts(row.activations, experts, what),
            unpack_sums(row.gate_mass, experts, what),
            unpack_sums(row.reap_sum, experts, what),
            unpack_counts(row.reap_counts, experts, what),
        ]
        if row.tokens < 1 or (values[1] > row.tokens).any():
            raise ProfileFormatError(
                f"The profile is damaged: {what}: an expert was chosen more often than there were tokens."
            )
        group = known(groups, row.group_id, what)
        sums = found.setdefault(key, {}).get(group)
        if sums is not None:
            values = [a + b for a, b in zip(sums, values, strict=True)]
        found[key][group] = values
    return found


def _table(shape: BankShape, by_group: Mapping[Group, list[Any]], groups: list[Group]) -> BankUsage:
    none = [0, *(np.zeros(shape.experts, dtype) for dtype in (np.int64, np.float64, np.float64, np.int64))]
    columns = list(zip(*(by_group.get(group, none) for group in groups), strict=True))
    return BankUsage(
        shape=shape,
        tokens=np.array(columns[0], dtype=np.int64),
        activations=np.stack(columns[1]),
        gate_mass=np.stack(columns[2]),
        reap_sum=np.stack(columns[3]),
        reap_counts=np.stack(columns[4]),
    )

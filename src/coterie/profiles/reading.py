"""Tables into facts. What is read is checked: a file may be damaged, and may come from anywhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, select

from coterie.errors import ProfileFormatError, UsageError
from coterie.profiles import tables
from coterie.profiles.facts import (
    BankCounts,
    BankShape,
    Counts,
    Group,
    GroupCounts,
    Mark,
    RunFacts,
    SegmentFacts,
    Vocabulary,
    check_group,
)
from coterie.profiles.packing import (
    MAX_TOKEN_ENTRIES,
    check_bank,
    segment_digest,
    unpack_counts,
    unpack_pairs,
    unpack_sums,
    unpack_tokens,
)
from coterie.profiles.rows import checked_rows
from coterie.spec import BankKey

_Thing = TypeVar("_Thing")
_AT_ONCE = 8
"""Segments in memory at once while many are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRows:
    """A run and the numbers that its rows have in this database.

    Attributes:
        id: Number of the run.
        facts: What it is.
        bank_ids: Bank → number.
    """

    id: int
    facts: RunFacts
    bank_ids: dict[BankKey, int]

    @property
    def shapes(self) -> dict[int, BankShape]:
        """Number of a bank → the bank."""
        return {self.bank_ids[shape.bank]: shape for shape in self.facts.banks}


def read_runs(connection: Connection, identity: str | None = None) -> list[RunRows]:
    """All runs, or those of a model, by UUID."""
    table = tables.runs
    query = select(table).order_by(table.c.uuid)
    if identity is not None:
        query = query.where(table.c.identity == identity)
    found = list(checked_rows(connection, query))
    banks = defaultdict(list)
    for row in checked_rows(connection, select(tables.banks)):
        banks[row.run_id].append(row)
    return [_run(row, banks[row.id]) for row in found]


def read_run(connection: Connection, uuid: str) -> RunRows | None:
    """The run of this UUID, if it is there."""
    found = list(checked_rows(connection, select(tables.runs).where(tables.runs.c.uuid == uuid)))
    if not found:
        return None
    query = select(tables.banks).where(tables.banks.c.run_id == found[0].id)
    return _run(found[0], list(checked_rows(connection, query)))


def _run(row: Any, bank_rows: Sequence[Any]) -> RunRows:
    shapes, ids = [], {}
    for bank in bank_rows:
        key = BankKey(bank.component, bank.layer, bank.bank)
        shapes.append(BankShape(bank=key, experts=bank.experts, top_k=bank.top_k))
        ids[key] = bank.id
    facts = RunFacts(
        uuid=row.uuid,
        identity=row.identity,
        model=row.model,
        model_class=row.model_class,
        banks=tuple(sorted(shapes, key=lambda shape: shape.bank)),
        started=row.started,
        tool_version=row.tool_version,
        label=row.label,
        tokenizer=row.tokenizer,
    )
    try:
        facts.check()
    except ValueError as error:
        raise ProfileFormatError(f"The profile is damaged: run {row.uuid}: {error}.", run=row.uuid) from error
    return RunRows(id=row.id, facts=facts, bank_ids=ids)


def read_groups(connection: Connection) -> dict[int, Group]:
    """Numbers of groups of tokens → the groups."""
    found = {}
    for row in checked_rows(connection, select(tables.groups)):
        try:
            found[row.id] = check_group(row.modality, row.domain, row.phase)
        except UsageError as error:
            raise ProfileFormatError(f"The profile is damaged: {error.message}") from error
    return found


def read_group_segments(connection: Connection, identity: str) -> dict[Group, int]:
    """Groups of tokens → in how many segments of a model's runs they have any."""
    counts, runs = tables.counts, tables.runs
    query = (
        select(counts.c.group_id, counts.c.run_id, counts.c.segment)
        .distinct()
        .join(runs, runs.c.id == counts.c.run_id)
        .where(runs.c.identity == identity)
    )
    groups = read_groups(connection)
    return Counter(known(groups, row.group_id, "counters") for row in checked_rows(connection, query))


def read_digests(connection: Connection, rows: RunRows) -> dict[int, str]:
    """Numbers of a run's segments → their digests, ascending."""
    table = tables.segments
    query = select(table.c.number, table.c.digest).where(table.c.run_id == rows.id).order_by(table.c.number)
    return {row.number: row.digest for row in checked_rows(connection, query)}


def read_segments(
    connection: Connection, rows: RunRows, numbers: Sequence[int] | None = None, *, pairs: bool = True
) -> Iterator[SegmentFacts]:
    """Segments of a run, ascending, a few in memory at a time.

    Args:
        connection: Open until the last one was taken.
        rows: The run.
        numbers: Which; None for all.
        pairs: Whether counts of pairs are read. Digests are checked only then.

    Raises:
        ProfileFormatError: If what is there contradicts itself.
    """
    digests = read_digests(connection, rows)
    wanted = sorted(digests if numbers is None else set(numbers) & digests.keys())
    groups = read_groups(connection)
    for start in range(0, len(wanted), _AT_ONCE):
        batch = wanted[start : start + _AT_ONCE]
        by_segment = _count_rows(connection, rows, batch)
        pair_rows = _pair_rows(connection, rows, batch) if pairs else {}
        for number in batch:
            segment = _segment(rows, number, groups, by_segment.get(number, {}), pair_rows.get(number, {}))
            if pairs and segment_digest(segment) != digests[number]:
                raise ProfileFormatError(
                    f"The profile is damaged: segment {number} of run {rows.facts.uuid} is not what was written.",
                    advice="Merge an intact copy into a new file, or record again.",
                    run=rows.facts.uuid,
                    segment=number,
                )
            yield segment


def _count_rows(connection: Connection, rows: RunRows, numbers: Sequence[int]) -> dict[int, dict[int, list[Any]]]:
    counts = tables.counts
    query = select(counts).where(counts.c.run_id == rows.id, counts.c.segment.in_(numbers))
    found: dict[int, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for row in checked_rows(connection, query):
        found[row.segment][row.bank_id].append(row)
    return found


def _pair_rows(connection: Connection, rows: RunRows, numbers: Sequence[int]) -> dict[int, dict[int, bytes]]:
    table = tables.pairs
    query = select(table).where(table.c.run_id == rows.id, table.c.segment.in_(numbers))
    found: dict[int, dict[int, bytes]] = defaultdict(dict)
    for row in checked_rows(connection, query):
        found[row.segment][row.bank_id] = row.counts
    return found


def _segment(
    rows: RunRows, number: int, groups: Mapping[int, Group], by_bank: dict[int, list[Any]], pairs: dict[int, bytes]
) -> SegmentFacts:
    banks = []
    where = f"run {rows.facts.uuid}, segment {number}"
    if pairs and not rows.facts.has_pairs:
        raise ProfileFormatError(f"The profile is damaged: {where}: it has pairs of too many experts.")
    for bank_id, shape in sorted(rows.shapes.items(), key=lambda item: item[1].bank):
        if bank_id not in by_bank:
            continue
        what = f"{where}, {shape.bank}"
        found = [_group(row, groups, shape.experts, what) for row in by_bank[bank_id]]
        found.sort(key=lambda counts: counts.group)
        packed = pairs.get(bank_id)
        bank = BankCounts(
            bank=shape.bank,
            groups=tuple(found),
            pairs=None if packed is None else unpack_pairs(packed, shape.experts, what),
        )
        check_bank(bank, shape.experts, what)
        banks.append(bank)
    return SegmentFacts(number=number, banks=tuple(banks))


def _group(row: Any, groups: Mapping[int, Group], experts: int, what: str) -> GroupCounts:
    return GroupCounts(
        group=known(groups, row.group_id, what),
        tokens=row.tokens,
        entropy_sum=row.entropy_sum,
        entropy_squares=row.entropy_squares,
        activations=unpack_counts(row.activations, experts, what),
        gate_mass=unpack_sums(row.gate_mass, experts, what),
        reap_sum=unpack_sums(row.reap_sum, experts, what),
        reap_counts=unpack_counts(row.reap_counts, experts, what),
    )


def known(things: Mapping[int, _Thing], number: int, what: str) -> _Thing:
    """What a row means by a number of another table.

    Args:
        things: Number → thing.
        number: That of the row.
        what: What the row is, for the message.

    Raises:
        ProfileFormatError: If there is no such thing.
    """
    try:
        return things[number]
    except KeyError:
        raise ProfileFormatError(f"The profile is damaged: {what}: it speaks of {number}, which is gone.") from None


def read_pairs(connection: Connection, rows: RunRows, bank: BankKey) -> Iterator[tuple[int, Counts]]:
    """Counts of pairs of one bank: number of the segment, and [E·(E−1)/2]; ascending."""
    if not rows.facts.has_pairs:
        return
    table = tables.pairs
    experts = next(shape.experts for shape in rows.facts.banks if shape.bank == bank)
    query = (
        select(table.c.segment, table.c.counts)
        .where(table.c.run_id == rows.id, table.c.bank_id == rows.bank_ids[bank])
        .order_by(table.c.segment)
    )
    for row in checked_rows(connection, query):
        yield row.segment, unpack_pairs(row.counts, experts, f"pairs of {bank} in run {rows.facts.uuid}")


def read_vocabulary(connection: Connection, rows: RunRows, bank: BankKey | None = None) -> Vocabulary:
    """Counts of tokens of a run: of all banks, or of one and what its tokens sum up to."""
    table = tables.vocabulary
    query = select(table).where(table.c.run_id == rows.id)
    if bank is not None:
        query = query.where(table.c.bank_id == rows.bank_ids[bank])
    shapes, left = rows.shapes, MAX_TOKEN_ENTRIES
    banks = {}
    for row in checked_rows(connection, query):
        shape = known(shapes, row.bank_id, f"tokens of run {rows.facts.uuid}")
        what = f"tokens of {shape.bank}"
        banks[shape.bank] = unpack_tokens(row.counts, row.segments, shape.experts, what, most=left)
        left -= len(banks[shape.bank].counts)
    table = tables.token_totals
    query = select(table).where(table.c.run_id == rows.id)
    if bank is not None:
        query = query.where(table.c.component == bank.component, table.c.bank == bank.bank)
    totals = {}
    for row in checked_rows(connection, query):
        state = unpack_tokens(row.counts, row.segments, 1, f"tokens of {row.component}", most=left)
        totals[row.component, row.bank] = state
        left -= len(state.counts)
    return Vocabulary(banks=banks, totals=totals)


def read_marks(connection: Connection, rows: RunRows) -> dict[str, Mark]:
    """Marks of a run by their key."""
    table = tables.marks
    found = checked_rows(connection, select(table).where(table.c.run_id == rows.id))
    return {row.input: Mark(row.input, row.position, row.done) for row in found}

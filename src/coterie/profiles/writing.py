"""Facts into tables: every write can be repeated, and joins what is there with what comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from coterie.errors import ProfileIdentityError, ProfileWriteError
from coterie.profiles import tables
from coterie.profiles.facts import (
    BankShape,
    Group,
    Mark,
    RunFacts,
    SegmentFacts,
    TokenCounts,
    Vocabulary,
    join_marks,
    join_segments,
    join_tokens,
    kept_text,
)
from coterie.profiles.packing import pack_counts, pack_pairs, pack_sums, pack_tokens, segment_digest
from coterie.profiles.reading import (
    RunRows,
    read_groups,
    read_marks,
    read_run,
    read_segments,
    read_vocabulary,
)
from coterie.profiles.rows import checked_rows
from coterie.spec import BankKey

_Key = TypeVar("_Key", BankKey, tuple[str, str])
_RUN_TEXTS = {"model": 255, "model_class": 255, "started": 20, "tool_version": 64, "label": 255, "tokenizer": 255}
"""Columns of a run that are texts, and what fits into them."""


def put_run(connection: Connection, run: RunFacts) -> RunRows:
    """Enters a run and its banks, unless they are there.

    Raises:
        ProfileIdentityError: If a run of this UUID is there and is of another model, or other runs of its model have
            other banks.
    """
    _check_shapes(connection, run)
    row = {"uuid": run.uuid, "identity": run.identity} | {
        name: kept_text(getattr(run, name), limit) for name, limit in _RUN_TEXTS.items()
    }
    _upsert(connection, tables.runs, [row], keys=("uuid",), replace=False)
    found = read_run(connection, run.uuid)
    assert found is not None
    if found.facts.identity != run.identity:
        raise ProfileIdentityError(
            f"Run {run.uuid} is of the model {found.facts.identity} here, but of {run.identity} there.",
            advice="One of the two copies is damaged.",
            expected=found.facts.identity,
            got=run.identity,
        )
    _put_banks(connection, found, run.banks)
    found = read_run(connection, run.uuid)
    assert found is not None
    return found


def _check_shapes(connection: Connection, run: RunFacts) -> None:
    """Runs of one model have the same banks: one that contradicts the others would make all of them unreadable."""
    banks, runs = tables.banks, tables.runs
    query = (
        select(banks.c.component, banks.c.layer, banks.c.bank, banks.c.experts)
        .distinct()
        .join(runs, runs.c.id == banks.c.run_id)
        .where(runs.c.identity == run.identity)
    )
    there = {BankKey(*row[:3]): row.experts for row in checked_rows(connection, query)}
    for shape in run.banks:
        experts = there.get(shape.bank, shape.experts)
        if experts != shape.experts:
            raise ProfileIdentityError(
                f"Run {run.uuid} says that {shape.bank} has {shape.experts} experts, but it has {experts} in other "
                "runs of the same model.",
                advice="One of them is damaged, or of another model; nothing of it was entered.",
                expected=experts,
                got=shape.experts,
            )


def _put_banks(connection: Connection, found: RunRows, shapes: Iterable[BankShape]) -> None:
    known = {shape.bank: shape for shape in found.facts.banks}
    missing = []
    for shape in shapes:
        if shape.bank not in known:
            missing.append(shape)
        elif known[shape.bank] != shape:
            raise ProfileWriteError(
                f"Run {found.facts.uuid}: {shape.bank} has {known[shape.bank].experts} experts, "
                f"{known[shape.bank].top_k} per token here, but {shape.experts} and {shape.top_k} there.",
                advice="One of the two copies is damaged.",
            )
    rows = [
        {"run_id": found.id, **shape.bank._asdict(), "experts": shape.experts, "top_k": shape.top_k}
        for shape in missing
    ]
    _upsert(connection, tables.banks, rows, keys=("run_id", "component", "layer", "bank"), replace=False)


def put_groups(connection: Connection, groups: Iterable[Group]) -> dict[Group, int]:
    """Enters groups unless they are there; returns their numbers."""
    table = tables.groups
    wanted = sorted(set(groups))
    have = {group: number for number, group in read_groups(connection).items()}
    rows = [group._asdict() for group in wanted if group not in have]
    if rows:
        _upsert(connection, table, rows, keys=("modality", "domain", "phase"), replace=False)
        have = {group: number for number, group in read_groups(connection).items()}
    return {group: have[group] for group in wanted}


def put_segment(connection: Connection, rows: RunRows, segment: SegmentFacts, *, new: bool = False) -> None:
    """Enters a segment, joined with what is there of it.

    Args:
        connection: Writing, in a transaction.
        rows: The run.
        segment: Its segment.
        new: It must not be there yet: this process is the one that records the run.

    Raises:
        ProfileWriteError: If ``new`` and it is there.
    """
    lock_run(connection, rows.id)
    there = next(iter(read_segments(connection, rows, [segment.number])), None)
    if there is not None:
        if new:
            raise ProfileWriteError(
                f"Segment {segment.number} of run {rows.facts.uuid} is there already: another process records it.",
                advice="Let one of the two begin a run of its own.",
            )
        segment = join_segments(there, segment)
    numbers = put_groups(connection, (counts.group for bank in segment.banks for counts in bank.groups))
    counts, pairs = _counter_rows(rows, segment, numbers)
    _upsert(connection, tables.counts, counts, keys=("run_id", "segment", "bank_id", "group_id"))
    _upsert(connection, tables.pairs, pairs, keys=("run_id", "segment", "bank_id"))
    head = {"run_id": rows.id, "number": segment.number, "tokens": segment.tokens, "digest": segment_digest(segment)}
    _upsert(connection, tables.segments, [head], keys=("run_id", "number"))


def _counter_rows(
    rows: RunRows, segment: SegmentFacts, numbers: Mapping[Group, int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    counts: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for bank in segment.banks:
        place = {"run_id": rows.id, "segment": segment.number, "bank_id": rows.bank_ids[bank.bank]}
        if bank.pairs is not None:
            pairs.append(place | {"counts": pack_pairs(bank.pairs)})
        for group in bank.groups:
            counts.append(
                place
                | {
                    "group_id": numbers[group.group],
                    "tokens": group.tokens,
                    "entropy_sum": group.entropy_sum,
                    "entropy_squares": group.entropy_squares,
                    "activations": pack_counts(group.activations),
                    "gate_mass": pack_sums(group.gate_mass),
                    "reap_sum": pack_sums(group.reap_sum),
                    "reap_counts": pack_counts(group.reap_counts),
                }
            )
    return counts, pairs


def put_vocabulary(connection: Connection, rows: RunRows, vocabulary: Vocabulary) -> None:
    """Enters counts of tokens where they are later than those that are there."""
    lock_run(connection, rows.id)
    there = read_vocabulary(connection, rows)
    banks = [
        {"run_id": rows.id, "bank_id": rows.bank_ids[key], "segments": state.segments, "counts": pack_tokens(state)}
        for key, state in _later(there.banks, vocabulary.banks)
    ]
    _upsert(connection, tables.vocabulary, banks, keys=("run_id", "bank_id"))
    totals = [
        {
            "run_id": rows.id,
            "component": key[0],
            "bank": key[1],
            "segments": state.segments,
            "counts": pack_tokens(state),
        }
        for key, state in _later(there.totals, vocabulary.totals)
    ]
    _upsert(connection, tables.token_totals, totals, keys=("run_id", "component", "bank"))


def _later(there: Mapping[_Key, TokenCounts], come: Mapping[_Key, TokenCounts]) -> list[tuple[_Key, TokenCounts]]:
    return [
        (key, state)
        for key, state in sorted(come.items())
        if key not in there or join_tokens(there[key], state) is not there[key]
    ]


def put_marks(connection: Connection, rows: RunRows, marks: Iterable[Mark]) -> None:
    """Enters marks where they are further on than those that are there."""
    wanted = list(marks)
    if not wanted:
        return
    lock_run(connection, rows.id)
    there = read_marks(connection, rows)
    joined = [join_marks(there[mark.key], mark) if mark.key in there else mark for mark in wanted]
    values = [{"run_id": rows.id, "input": mark.key, "position": mark.position, "done": mark.done} for mark in joined]
    _upsert(connection, tables.marks, values, keys=("run_id", "input"))


def lock_run(connection: Connection, run_id: int) -> None:
    """Lets one writer of a run wait for another until the transaction ends. SQLite has one writer at all."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(tables.runs.c.id).where(tables.runs.c.id == run_id).with_for_update())


def _upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    keys: tuple[str, ...],
    replace: bool = True,
) -> None:
    """Inserts rows in bulk; those whose keys are there are replaced, or left as they are."""
    if not rows:
        return
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table)
    if replace:
        values = {name: statement.excluded[name] for name in rows[0] if name not in keys}
        statement = statement.on_conflict_do_update(index_elements=list(keys), set_=values)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=list(keys))
    connection.execute(statement, list(rows))

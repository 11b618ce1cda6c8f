"""What an extraction reads over the network, and whether it was what the Hub says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import CoterieError
from coterie.extraction.received import ReceivedList
from coterie.extraction.shard_checks import ShardChecks, remote_files, wanted_bytes
from coterie.origins import Origin
from coterie.records.remote import Received
from coterie.spec import BankKey
from coterie.store import StorePlan, StoreWriter, Survey, names
from coterie.store.plan import plan_segments


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkUse:
    """What is read from a server by ranges; nothing of it is kept beside the store.

    Attributes:
        files: Files of the checkpoint that are read from.
        needed_nbytes: Bytes of the tensors that are still to be had, without headers.
        received_nbytes: Bytes that came; 0 for a dry run. More than needed where a connection broke, and where bytes
            were read again to compare a shard.
        requests: Requests for ranges.
        retries: Those that failed and were tried again.
        checked: Files that were compared with the SHA-256 that the Hub states, by name.
        unchecked: Files that were not, since only a part of them was wanted or no SHA-256 is stated.
    """

    files: int
    needed_nbytes: int
    received_nbytes: int = 0
    requests: int = 0
    retries: int = 0
    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


def network_plan(origin: Origin, plan: StorePlan, found: Survey) -> NetworkUse | None:
    """What is still to be read over the network; None where nothing is read from there.

    Args:
        origin: What is read.
        plan: What the store is to hold.
        found: What is there of it.
    """
    if origin.reader is None:
        return None
    files = remote_files(origin)
    missing = {file.file for file in found.files if not file.present}
    segments = plan_segments(plan, found.base).values()
    chosen: dict[BankKey, tuple[int, ...]] = {
        one.key: tuple(record.expert for record in one.segment.records)
        for one in segments
        if one.segment.file in missing
    }
    wanted = wanted_bytes(origin, chosen, dense=any(map(names.is_dense_file, missing)))
    return NetworkUse(files=sum(wanted[address] > 0 for address in files), needed_nbytes=wanted.total())


def network_report(planned: NetworkUse | None, came: Received | None, checks: ShardChecks | None) -> NetworkUse | None:
    """The same with what has come."""
    if planned is None or came is None:
        return planned
    return NetworkUse(
        files=planned.files,
        needed_nbytes=planned.needed_nbytes,
        received_nbytes=came.nbytes,
        requests=came.requests,
        retries=came.retries,
        checked=() if checks is None else checks.checked,
        unchecked=() if checks is None else checks.unchecked,
    )


@contextmanager
def checking(origin: Origin, writer: StoreWriter) -> Iterator[ShardChecks | None]:
    """Within it shards that are read by ranges are compared with the Hub's checksums, at its end all that can be.

    If one is wrong, what the store has of it is removed, whichever run has written it.

    Yields:
        The checks; None where nothing is read over the network.

    Raises:
        CheckpointFileError: If a shard has other bytes than the Hub says.
    """
    reader = origin.reader
    if reader is None:
        yield None
        return
    received = ReceivedList(Path(writer.path) / names.RECEIVED)
    try:
        checks = ShardChecks(reader, origin, writer.planned, received, dense=not writer.growing)
        _discard_unnoted(origin, writer, checks)
        reader.watch = checks.watch
        try:
            yield checks
            checks.finish()
        except CoterieError as error:
            address = error.facts.get("differing")
            if isinstance(address, str):
                _discard_made_of(address, origin, writer)
                checks.drop(address)
            raise
        finally:
            reader.watch = None
    finally:
        received.close()


def _tensors_of(origin: Origin, writer: StoreWriter) -> dict[BankKey | None, list[str]]:
    """The tensors that each bank of a work comes from; under None those of everything that is no expert."""
    found: dict[BankKey | None, list[str]] = {}
    found[None] = [name for name in origin.stored_names(origin.model.keymap.dense) if name in origin.tensors]
    for key, ids in writer.planned.items():
        found[key] = [name for expert in ids for name in origin.names_of(key.expert(expert))]
    return found


def _discard_unnoted(origin: Origin, writer: StoreWriter, checks: ShardChecks) -> None:
    """Files of an earlier run of which nobody knows any more what they were made of."""
    missing = set(writer.missing_banks())
    for key, tensors in _tensors_of(origin, writer).items():
        done = writer.dense_done if key is None else key not in missing
        if done and checks.unnoted(origin, tensors):
            writer.discard([] if key is None else [key], dense=key is None)


def _discard_made_of(address: str, origin: Origin, writer: StoreWriter) -> None:
    def is_of(name: str) -> bool:
        remote = origin.tensors[name].remote
        return remote is not None and remote.address == address

    affected = [key for key, tensors in _tensors_of(origin, writer).items() if any(map(is_of, tensors))]
    writer.discard([key for key in affected if key is not None], dense=None in affected)

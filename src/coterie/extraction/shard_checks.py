"""Compares shards that are read by ranges with the Hub's SHA-256 of them, while they pass by.

A range has no checksum of its own. A shard that goes into a store as a whole has: its bytes are hashed in their order,
as far as they come in order; those that come a little early wait in memory. What came too early for that, or in an
earlier run, or twice, is known by a digest. At the end the bytes that are still lacking are read once more, and have to
have these digests: then those that were used are those that the SHA-256 stands for.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.errors import CheckpointFileError
from coterie.extraction.received import ReceivedList, UsedRange
from coterie.origins import Origin
from coterie.records.remote import HttpFile, RangeReader
from coterie.records.remote.range_reader import digest_of
from coterie.spec import BankKey, ExpertKey

HELD_BYTES = 64 * 2**20
"""Most bytes that wait in memory for those before them."""

LONGEST_REREAD = 8 * 2**30
"""Most bytes of a shard that are read again to check it."""

_WHOLE = 0.9
"""Share of a shard from which on it counts as read by whole: the little that nobody wanted is read, too."""

_PIECE = 8 * 2**20


@dataclass(eq=False)
class _Early:
    """A range that was used before the bytes up to it were hashed: its digest is computed again when they are."""

    used: UsedRange
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def __lt__(self, other: _Early) -> bool:
        return self.used.offset < other.used.offset


@dataclass(eq=False)
class _Shard:
    """How far a shard is."""

    file: HttpFile
    sha256: str
    known: dict[tuple[int, int], UsedRange]
    checked: bool
    digest: Any = field(default_factory=hashlib.sha256)
    position: int = 0
    held: dict[int, bytes] = field(default_factory=dict)
    early: list[_Early] = field(default_factory=list)
    late: list[UsedRange] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        for one in sorted(self.known.values(), key=lambda used: used.offset):
            if self.ends and one.offset <= self.ends[-1]:
                self.ends[-1] = max(self.ends[-1], one.end)
            else:
                self.begins.append(one.offset)
                self.ends.append(one.end)

    @property
    def complete(self) -> bool:
        return self.position == self.file.nbytes

    def touches(self, offset: int, nbytes: int) -> bool:
        """Whether bytes among these were noted as used when this run began."""
        index = bisect_left(self.ends, offset + 1)
        return not nbytes or (index < len(self.begins) and self.begins[index] < offset + nbytes)


class ShardChecks:
    """The checks of one extraction. Safe to use from several threads.

    Args:
        reader: Reads the ranges; tells of all that arrives.
        origin: What is read.
        chosen: Bank → ids of the experts that are taken.
        dense: Whether everything that is not an expert is taken, too.
        received: What earlier runs have used, and where it is noted.
    """

    def __init__(
        self,
        reader: RangeReader,
        origin: Origin,
        chosen: Mapping[BankKey, Collection[int]],
        received: ReceivedList,
        *,
        dense: bool,
    ) -> None:
        self._reader = reader
        self._received = received
        self._held = 0
        self._lock = threading.Lock()
        self._shards: dict[str, _Shard] = {}
        files, wanted = remote_files(origin), wanted_bytes(origin, chosen, dense=dense)
        before: dict[str, list[UsedRange]] = {}
        for file, offset, nbytes, digest in reader.take_unwatched():
            before.setdefault(file.address, []).append(UsedRange(offset=offset, nbytes=nbytes, digest=digest))
        for address, file in files.items():
            if file.sha256 is None or wanted[address] < _WHOLE * file.nbytes:
                continue
            known = received.known(file.sha256)
            shard = _Shard(file, file.sha256, known.used, known.checked)
            shard.early = sorted(_Early(one) for one in (*known.used.values(), *before.get(address, ())))
            if shard.checked and address in before:
                shard.late += before[address]
            self._shards[address] = shard
            self._arrived(shard, 0, memoryview(file.header))
        self.unchecked = tuple(
            sorted(file.name for address, file in files.items() if wanted[address] and address not in self._shards)
        )

    @property
    def files(self) -> tuple[str, ...]:
        """Addresses of the shards that are checked."""
        return tuple(self._shards)

    @property
    def checked(self) -> tuple[str, ...]:
        """Names of the shards that were found right."""
        return tuple(sorted(shard.file.name for shard in self._shards.values() if shard.checked))

    def unnoted(self, origin: Origin, names: Iterable[str]) -> bool:
        """Whether some of these tensors are of a shard that is checked, and none of their bytes were noted as used.

        The list is not made durable line by line, and files of a store are: after a power cut it may lack its end.
        """
        infos = (origin.tensors[name] for name in names)
        remote = [(self._shards.get(info.remote.address), info) for info in infos if info.remote is not None]
        return any(shard is not None and not shard.touches(info.offset, info.nbytes) for shard, info in remote)

    def watch(self, file: HttpFile, offset: int, data: memoryview) -> None:
        """Takes note of bytes that have arrived, before anyone uses them.

        Raises:
            CheckpointFileError: If they, or those before them, are wrong: as :meth:`finish`.
        """
        shard = self._shards.get(file.address)
        if shard is None or not len(data):
            return
        used = UsedRange(offset=offset, nbytes=len(data), digest=digest_of(data))
        self._received.used(shard.sha256, used)
        with shard.lock:
            before = shard.known.get((offset, len(data)))
            if before is not None and before.digest != used.digest:
                raise self._differs(shard, f"the bytes from {offset:,} on came in two versions")
            shard.known[offset, len(data)] = used
            if before is not None and shard.checked:
                return
            self._arrived(shard, offset, data)

    def finish(self) -> None:
        """Reads what is lacking of each shard, and compares all of them.

        Raises:
            CheckpointFileError: If one is wrong (its address is the fact ``differing``), or cannot be read.
        """
        buffer = memoryview(bytearray(_PIECE))
        for shard in self._shards.values():
            if shard.checked and not shard.late:
                continue
            if shard.file.nbytes - shard.position - sum(map(len, shard.held.values())) > LONGEST_REREAD:
                continue
            while not shard.complete and not shard.checked:
                end = min([shard.position + _PIECE, shard.file.nbytes, *shard.held])
                self._reader.read(shard.file, shard.position, buffer[: end - shard.position])
            for one in self._late(shard):
                view = memoryview(bytearray(one.nbytes))
                self._reader.read(shard.file, one.offset, view)
                if digest_of(view) != one.digest:
                    raise self._differs(shard, f"the bytes from {one.offset:,} on came in two versions")
            self._found_right(shard)

    def _found_right(self, shard: _Shard) -> None:
        shard.checked = True
        self._received.checked(shard.sha256)

    def drop(self, address: str) -> None:
        """Notes that nothing of a shard is in the store any more."""
        self._received.dropped(self._shards[address].sha256)

    def _late(self, shard: _Shard) -> list[UsedRange]:
        with shard.lock:
            late, shard.late = shard.late, []
        return late

    def _arrived(self, shard: _Shard, offset: int, data: memoryview) -> None:
        """Hashes bytes whose turn it is, and those that waited for them."""
        with shard.lock:
            if offset > shard.position and not shard.checked:
                self._wait(shard, offset, data)
                return
            self._hash(shard, offset, data)
            while not shard.complete and (start := min(shard.held, default=shard.file.nbytes)) <= shard.position:
                waited = shard.held.pop(start)
                self._let_go(len(waited))
                self._hash(shard, start, memoryview(waited))

    def _hash(self, shard: _Shard, offset: int, data: memoryview) -> None:
        known = min(len(data), (len(data) if shard.checked else shard.position - offset))
        if known > 0:
            # These bytes were hashed already, as they came the first time.
            again = data[:known]
            if shard.checked and not shard.late:
                self._received.doubted(shard.sha256)
            shard.late.append(UsedRange(offset=offset, nbytes=known, digest=digest_of(again)))
        fresh = data[known:]
        if not len(fresh):
            return
        shard.digest.update(fresh)
        self._compare_early(shard, fresh)
        shard.position += len(fresh)
        if not shard.complete:
            return
        if (got := shard.digest.hexdigest()) != shard.sha256:
            raise self._differs(shard, f"its SHA-256 is {got}, the Hub says {shard.sha256}")
        if not shard.late:
            self._found_right(shard)

    def _compare_early(self, shard: _Shard, fresh: memoryview) -> None:
        begin, end = shard.position, shard.position + len(fresh)
        left: list[_Early] = []
        for number, early in enumerate(shard.early):
            if early.used.offset >= end:
                left += shard.early[number:]
                break
            early.digest.update(fresh[max(0, early.used.offset - begin) : max(0, early.used.end - begin)])
            if early.used.end > end:
                left.append(early)
            elif early.digest.hexdigest() != early.used.digest:
                raise self._differs(shard, f"the bytes from {early.used.offset:,} on came in two versions")
        shard.early = left

    def _wait(self, shard: _Shard, offset: int, data: memoryview) -> None:
        """Keeps bytes until their turn; only their digest where memory is short. What is far ahead waits longest."""
        with self._lock:
            room = self._held + len(data) <= HELD_BYTES
            if room:
                self._held += len(data)
        if not room and shard.held and max(shard.held) > offset:
            far = max(shard.held)
            given_up = shard.held.pop(far)
            self._let_go(len(given_up))
            self._note_early(shard, far, given_up)
            self._wait(shard, offset, data)
        elif not room or offset in shard.held:
            if room:
                self._let_go(len(data))
            self._note_early(shard, offset, data)
        else:
            shard.held[offset] = bytes(data)

    def _note_early(self, shard: _Shard, offset: int, data: bytes | memoryview) -> None:
        insort(shard.early, _Early(UsedRange(offset=offset, nbytes=len(data), digest=digest_of(data))))

    def _let_go(self, nbytes: int) -> None:
        with self._lock:
            self._held -= nbytes

    def _differs(self, shard: _Shard, how: str) -> CheckpointFileError:
        return CheckpointFileError(
            f"{shard.file.name} arrived with other bytes than the Hub says: {how}. What was made of it is removed.",
            advice="Run the command again. If it stays so, a proxy or mirror in between changes files.",
            path=shard.file.name,
            differing=shard.file.address,
        )


def remote_files(origin: Origin) -> dict[str, HttpFile]:
    """The files that an origin's tensors are read from by ranges, by address."""
    return {info.remote.address: info.remote for info in origin.tensors.values() if info.remote is not None}


def wanted_bytes(origin: Origin, chosen: Mapping[BankKey, Collection[int]], *, dense: bool) -> Counter[str]:
    """How many bytes of each of these files are taken, by address: those of experts, and of all that is none."""
    wanted: Counter[str] = Counter()
    for name in origin.stored_names(origin.model.keymap.dense) if dense else ():
        info = origin.tensors[name]
        if info.remote is not None:
            wanted[info.remote.address] += info.nbytes
    for bank, ids in chosen.items():
        everyone = range(origin.model.banks[bank].bank.num_experts)
        sharing = Counter(names_of_all(origin, map(bank.expert, everyone)))
        for name, count in Counter(names_of_all(origin, map(bank.expert, ids))).items():
            info = origin.tensors[name]
            if info.remote is not None:
                wanted[info.remote.address] += info.nbytes * count // sharing[name]
    return wanted


def names_of_all(origin: Origin, keys: Iterable[ExpertKey]) -> Iterable[str]:
    """The tensors that hold these experts; one that holds several comes as often."""
    return (name for key in keys for name in origin.names_of(key))

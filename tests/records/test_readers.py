"""So many reads at once, the next one ready before the last one ends, and nothing left open."""

import os
import threading

import pytest

from cache.sources import (
    LARGE,
    PATIENCE_S,
    SMALL,
    Gate,
    TinySource,
    assert_consistent,
    assert_is,
    keys_of,
    leased,
    record_bytes,
    wait_until,
)
from coterie.cache import ExpertCache
from coterie.cache.arena import SlotArena
from coterie.errors import ReadError
from coterie.records import LocalFile, RecordReader
from coterie.records.files import HAS_PREADV
from coterie.records.reads import Piece, split
from coterie.spec import Extent

KEYS = keys_of(12)


class Decoded(TinySource):
    """Its reads take place in ``read_into`` alone, where ``gate`` may hold them; ``most`` is how many were at once."""

    def __init__(self, root, layouts, gate=None, **options):
        super().__init__(root, layouts, kind="decoded", **options)
        self.gate = gate
        self.most = 0
        self._now = 0

    def read_into(self, key, record):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            if self.gate is not None:
                self.gate(key)
            return super().read_into(key, record)
        finally:
            with self._lock:
                self._now -= 1


class SlowChecksums(Decoded):
    """Its checksums can be held back by ``checks``."""

    def checksum(self, key):
        self.checks(key)
        return super().checksum(key)


def warm(cache, keys):
    with leased(cache, keys) as lease:
        for _ in lease:
            pass


def test_all_misses_are_being_read_before_the_first_hit_is_computed(tmp_path):
    gate = Gate(*KEYS[2:6])
    source = Decoded.uniform(tmp_path, 12, gate=gate)
    with ExpertCache(source, capacity=8 * SMALL.nbytes, read_threads=4) as cache:
        warm(cache, KEYS[:2])
        with leased(cache, KEYS[:6]) as lease:
            key, tensors = next(lease)
            assert key == KEYS[0]
            # Here a consumer would compute.
            for miss in KEYS[2:6]:
                gate.wait_for(miss)
            assert_is(key, SMALL, tensors)
            gate.open()
            assert {key for key, _ in lease} == set(KEYS[1:6])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_reads_follow_each_other_while_the_consumer_computes(tmp_path, threads):
    source = Decoded.uniform(tmp_path, 12)
    with ExpertCache(source, capacity=12 * SMALL.nbytes, read_threads=threads) as cache:
        warm(cache, KEYS[:1])
        with leased(cache, KEYS) as lease:
            assert next(lease)[0] == KEYS[0]
            # The consumer never comes back, and all the others arrive.
            wait_until(lambda: all(key in cache for key in KEYS))
    assert source.most <= threads


def test_a_streaming_lease_reads_ahead_while_its_consumer_computes(tmp_path):
    source = Decoded.uniform(tmp_path, 12)
    with (
        ExpertCache(source, capacity=8 * SMALL.nbytes, read_threads=2) as cache,
        leased(cache, KEYS) as lease,
    ):
        assert not lease.together
        next(lease)
        wait_until(lambda: sum(key in cache for key in KEYS) == 6)


def test_the_next_record_is_prepared_during_a_read_and_not_read(tmp_path):
    prepared, gate = Gate(), Gate(KEYS[0])
    source = Decoded.uniform(tmp_path, 12, gate=gate, before_read=prepared)
    with (
        ExpertCache(source, capacity=8 * SMALL.nbytes, read_threads=1) as cache,
        leased(cache, KEYS[:3]) as lease,
    ):
        gate.wait_for(KEYS[0])
        prepared.wait_for(KEYS[1])
        assert gate.arrived == [KEYS[0]]
        # One is ready; a third would only take a slot for longer.
        assert prepared.arrived == KEYS[:2]
        gate.open()
        assert {key for key, _ in lease} == set(KEYS[:3])
    assert source.most == 1


def test_the_next_read_does_not_wait_for_the_checksum_of_the_last_one(tmp_path):
    gate = Gate()
    source = SlowChecksums.uniform(tmp_path, 12, gate=gate)
    source.checks = Gate(KEYS[0])
    with (
        ExpertCache(source, capacity=8 * SMALL.nbytes, read_threads=1, verify_reads=True) as cache,
        leased(cache, KEYS[:3], ordered=True) as lease,
    ):
        source.checks.wait_for(KEYS[0])
        gate.wait_for(KEYS[1])
        assert KEYS[0] not in cache
        source.checks.open()
        assert [key for key, _ in lease] == KEYS[:3]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("pieces", [1, 3])
def test_never_more_at_once_than_allowed(tmp_path, monkeypatch, threads, pieces):
    now, most = [0], [0]
    lock, real = threading.Lock(), os.preadv

    def counted(fd, buffers, offset):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        try:
            return real(fd, buffers, offset)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(os, "preadv", counted)
    source = TinySource.uniform(tmp_path, 12, layout=LARGE)
    size = -(-LARGE.nbytes // pieces)
    with ExpertCache(source, capacity=4 * LARGE.nbytes, read_threads=threads, read_nbytes=size) as cache:
        for start in range(0, 12, 3):
            with leased(cache, KEYS[start:] + KEYS[:start]) as lease:
                for key, tensors in lease:
                    assert_is(key, LARGE, tensors)
        assert_consistent(cache)
    assert 1 <= most[0] <= threads


class TestSplit:
    EXTENT = Extent(source=None, offset=8192, nbytes=10 * 4096, at=4096)

    @pytest.mark.parametrize("longest", [1, 4096, 3 * 4096, 3 * 4096 + 1, 10 * 4096 - 1])
    def test_the_parts_are_the_whole(self, longest):
        parts = list(split(self.EXTENT, longest))
        assert len(parts) > 1
        at, offset = self.EXTENT.at, self.EXTENT.offset
        for part in parts:
            assert (part.at, part.offset) == (at, offset)
            assert not part.nbytes % 4096
            assert part.nbytes <= -(-longest // 4096) * 4096
            at, offset = at + part.nbytes, offset + part.nbytes
        assert offset == self.EXTENT.offset + self.EXTENT.nbytes

    @pytest.mark.parametrize("longest", [None, 10 * 4096, 11 * 4096])
    def test_what_is_short_enough_stays_whole(self, longest):
        assert list(split(self.EXTENT, longest)) == [self.EXTENT]

    def test_what_is_not_aligned_stays_whole(self):
        odd = Extent(source=None, offset=1, nbytes=10 * 4096)
        assert list(split(odd, 4096)) == [odd]

    @pytest.mark.skipif(not HAS_PREADV, reason="uses preadv")
    def test_a_record_in_parts_is_its_bytes(self, tmp_path):
        source = TinySource.uniform(tmp_path, 2, layout=LARGE)
        reader = RecordReader(source, verify=True, read_nbytes=4096)
        read = reader.prepare(KEYS[1], LARGE, (slot := SlotArena(LARGE.nbytes).acquire(LARGE.nbytes)).record)
        assert len(read.steps) == LARGE.nbytes // 4096
        for step in reversed(read.steps):
            step.run()
        assert read.finish() == LARGE.nbytes
        assert slot.record == record_bytes(KEYS[1], LARGE)
        reader.close()


class TestEnds:
    def test_what_was_prepared_and_never_read_is_closed(self, tmp_path, monkeypatch):
        source = TinySource.uniform(tmp_path, 12)
        entered, leave = threading.Event(), threading.Event()
        cache = ExpertCache(source, capacity=8 * SMALL.nbytes, read_threads=1)
        run = Piece.run

        def slow(piece):
            entered.set()
            assert leave.wait(PATIENCE_S)
            run(piece)

        monkeypatch.setattr(Piece, "run", slow)
        lease = leased(cache, KEYS[:4])
        lease.__enter__()
        assert entered.wait(PATIENCE_S)
        wait_until(lambda: cache.snapshot().prepared == 1)
        closing = threading.Thread(target=cache.close)
        closing.start()
        wait_until(lambda: cache.snapshot().closed)
        leave.set()
        closing.join(PATIENCE_S)
        lease.close()
        left = cache.snapshot()
        assert (left.open_files, left.prepared, left.finished) == (0, 0, 0)

    def test_a_file_that_cannot_be_opened_fails_its_consumer_and_nobody_else(self, tmp_path):
        source = TinySource.uniform(tmp_path, 12)
        source._extents[KEYS[1]] = (Extent(source=LocalFile(tmp_path / "gone"), offset=0, nbytes=SMALL.nbytes),)
        with ExpertCache(source, capacity=8 * SMALL.nbytes, read_threads=1) as cache:
            with pytest.raises(ReadError, match="gone"):
                warm(cache, KEYS[:4])
            warm(cache, [KEYS[0], *KEYS[2:5]])
            assert_consistent(cache)

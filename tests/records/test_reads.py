"""Records arrive whole, by every path, or an error says what happened."""

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.sources import LAYOUTS, SCALED, SMALL, TinySource, keys_of, record_bytes
from coterie.cache.arena import SlotArena
from coterie.errors import ChecksumError, CoterieError, ReadError, StoreFormatError
from coterie.records import LocalFile, RecordReader, files
from coterie.records.files import HAS_PREADV
from coterie.spec import Extent, RecordLayout

KINDS = ("aligned", "odd", "decoded")
WAYS = ("direct", "buffered", "readinto")


@pytest.fixture(params=WAYS)
def options(request, monkeypatch):
    """How a reader is made that reads in this way."""
    if request.param == "readinto":
        monkeypatch.setattr(files, "HAS_PREADV", False)
        monkeypatch.setattr(files, "HAS_DIRECT", False)
    return {"direct": request.param != "buffered"}


def slot_for(layout):
    slot = SlotArena(layout.nbytes).acquire(layout.nbytes)
    slot.record[:] = b"\xff" * layout.nbytes
    return slot


def has_o_direct(path):
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except (OSError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_is_its_bytes_and_zeros_between_them(tmp_path, kind, options):
    source = TinySource.mixed(tmp_path, 6, kind=kind)
    reader = RecordReader(source, verify=True, **options)
    for key in keys_of(6):
        layout = source.layout(key)
        slot = slot_for(layout)
        nbytes = reader.read(key, layout, slot.record)
        assert slot.record == record_bytes(key, layout)
        assert nbytes == (layout.nbytes if kind == "aligned" else layout.payload_nbytes)
    reader.close()


class Recorded:
    """Stands in for a function of ``os`` and keeps the calls."""

    def __init__(self, function):
        self.function = function
        self.calls = []

    def __call__(self, *arguments):
        self.calls.append(arguments)
        return self.function(*arguments)


@pytest.mark.skipif(not HAS_PREADV or not hasattr(os, "O_DIRECT"), reason="Linux")
class TestDirect:
    def test_an_aligned_extent_is_one_read_past_the_page_cache(self, tmp_path, monkeypatch):
        source = TinySource.uniform(tmp_path, 2)
        if not has_o_direct(source.path):
            pytest.skip("this filesystem has no O_DIRECT")
        opened, reads = Recorded(os.open), Recorded(os.preadv)
        monkeypatch.setattr(os, "open", opened)
        monkeypatch.setattr(os, "preadv", reads)
        reader = RecordReader(source)
        for key in keys_of(2):
            slot = slot_for(SMALL)
            reader.read(key, SMALL, slot.record)
            assert slot.record == record_bytes(key, SMALL)
        assert len(reads.calls) == 2
        assert [bool(flags & os.O_DIRECT) for _, flags in opened.calls] == [True]

    @pytest.mark.parametrize("where", ["open", "read"])
    def test_a_filesystem_that_refuses_it_is_asked_once(self, tmp_path, monkeypatch, where):
        source = TinySource.uniform(tmp_path, 3)
        real_open, real_preadv = os.open, os.preadv
        direct_fds, refusals = set(), []

        def refuse():
            refusals.append(where)
            raise OSError(errno.EINVAL, "no direct I/O here")

        def fake_open(path, flags, *rest):
            if flags & os.O_DIRECT:
                if where == "open":
                    refuse()
                fd = real_open(path, flags & ~os.O_DIRECT, *rest)
                direct_fds.add(fd)
                return fd
            return real_open(path, flags, *rest)

        def fake_preadv(fd, buffers, offset):
            if fd in direct_fds:
                refuse()
            return real_preadv(fd, buffers, offset)

        monkeypatch.setattr(os, "open", fake_open)
        monkeypatch.setattr(os, "preadv", fake_preadv)
        reader = RecordReader(source)
        for key in keys_of(3):
            slot = slot_for(SMALL)
            reader.read(key, SMALL, slot.record)
            assert slot.record == record_bytes(key, SMALL)
        assert len(refusals) == 1

    def test_buffered_bytes_are_dropped_from_the_page_cache(self, tmp_path, monkeypatch):
        source = TinySource.uniform(tmp_path, 1, kind="odd")
        advice = Recorded(os.posix_fadvise)
        monkeypatch.setattr(os, "posix_fadvise", advice)
        RecordReader(source).read(keys_of(1)[0], SMALL, slot_for(SMALL).record)
        dropped = [call[1:3] for call in advice.calls if call[3] == os.POSIX_FADV_DONTNEED]
        for extent in source.extents(keys_of(1)[0]):
            # Whole pages around the extent.
            assert any(
                start <= extent.offset and start + length >= extent.offset + extent.nbytes and start % 4096 == 0
                for start, length in dropped
            )


@pytest.mark.skipif(not HAS_PREADV, reason="uses preadv")
@settings(max_examples=30)
@given(pieces=st.lists(st.integers(1, 5000), min_size=1, max_size=8), kind=st.sampled_from(["aligned", "odd"]))
def test_short_reads_are_gone_on_with(tmp_path, pieces, kind):
    source = TinySource.uniform(tmp_path, 1, kind=kind)
    sizes = iter(pieces * 10000)
    real = os.preadv
    key = keys_of(1)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][: next(sizes)]], offset))
        slot = slot_for(SMALL)
        RecordReader(source).read(key, SMALL, slot.record)
    assert slot.record == record_bytes(key, SMALL)


class TestErrors:
    @pytest.mark.parametrize("cut", [1, 4096 - 3, 4096])
    @pytest.mark.parametrize("kind", ["aligned", "odd"])
    def test_a_truncated_file(self, tmp_path, kind, cut, options):
        source = TinySource.uniform(tmp_path, 2, kind=kind, layout=SCALED)
        os.truncate(source.path, source.path.stat().st_size - cut)
        key = keys_of(2)[1]
        with pytest.raises(ReadError, match="the file ends at") as caught:
            RecordReader(source, **options).read(key, SCALED, slot_for(SCALED).record)
        error = caught.value
        assert error.key == key
        assert error.path == source.path
        damaged = [extent for extent in source.extents(key) if extent.offset == error.offset]
        assert error.expected == damaged[0].nbytes
        assert 0 <= error.got < error.expected
        assert str(key) in str(error)
        assert str(source.path) in str(error)

    def test_a_file_that_is_gone(self, tmp_path, options):
        source = TinySource.uniform(tmp_path, 1)
        source.path.unlink()
        with pytest.raises(ReadError, match="No such file") as caught:
            RecordReader(source, **options).read(keys_of(1)[0], SMALL, slot_for(SMALL).record)
        assert caught.value.got == 0
        assert isinstance(caught.value.__cause__, FileNotFoundError)

    @pytest.mark.skipif(not HAS_PREADV, reason="uses preadv")
    @pytest.mark.parametrize("direct", [True, False])
    def test_an_input_output_error(self, tmp_path, monkeypatch, direct):
        source = TinySource.uniform(tmp_path, 1)

        def broken(fd, buffers, offset):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(ReadError, match="Input/output error") as caught:
            RecordReader(source, direct=direct).read(keys_of(1)[0], SMALL, slot_for(SMALL).record)
        assert caught.value.__cause__.errno == errno.EIO

    @pytest.mark.parametrize("at", [-1, 4096])
    def test_an_extent_that_leaves_the_record(self, tmp_path, at):
        source = TinySource.uniform(tmp_path, 1)
        key = keys_of(1)[0]
        source._extents[key] = (Extent(source=LocalFile(source.path), offset=0, nbytes=SMALL.nbytes, at=at),)
        with pytest.raises(ReadError, match="outside"):
            RecordReader(source).read(key, SMALL, slot_for(SMALL).record)

    def test_a_source_that_cannot_decode(self, tmp_path):
        class Raising(TinySource):
            error: Exception = RuntimeError("boom")

            def read_into(self, key, record):
                raise self.error

        source = Raising.uniform(tmp_path, 1, kind="decoded")
        with pytest.raises(ReadError, match="boom"):
            RecordReader(source).read(keys_of(1)[0], SMALL, slot_for(SMALL).record)
        source.error = StoreFormatError("rule 7")
        with pytest.raises(StoreFormatError, match="rule 7"):
            RecordReader(source).read(keys_of(1)[0], SMALL, slot_for(SMALL).record)

    def test_reading_after_close(self, tmp_path):
        reader = RecordReader(TinySource.uniform(tmp_path, 1))
        reader.close()
        with pytest.raises(CoterieError, match="closed"):
            reader.read(keys_of(1)[0], SMALL, slot_for(SMALL).record)


class TestVerify:
    def test_a_flipped_bit_anywhere_is_found(self, tmp_path):
        source = TinySource.uniform(tmp_path, 2)
        key = keys_of(2)[1]
        with open(source.path, "r+b") as file:
            file.seek(SMALL.nbytes + 1234)
            byte = file.read(1)[0]
            file.seek(SMALL.nbytes + 1234)
            file.write(bytes([byte ^ 4]))
        RecordReader(source).read(key, SMALL, slot_for(SMALL).record)
        with pytest.raises(ChecksumError, match="differs from its checksum") as caught:
            RecordReader(source, verify=True).read(key, SMALL, slot_for(SMALL).record)
        assert caught.value.key == key
        assert caught.value.path == source.path
        assert caught.value.offset == SMALL.nbytes
        assert caught.value.expected == source.checksum(key)
        assert caught.value.got != caught.value.expected

    def test_a_decoded_record_is_compared_too(self, tmp_path):
        source = TinySource.uniform(tmp_path, 1, kind="decoded")
        source.checksum = lambda key: "0" * 32
        with pytest.raises(ChecksumError):
            RecordReader(source, verify=True).read(keys_of(1)[0], SMALL, slot_for(SMALL).record)

    def test_a_source_without_checksums_is_taken_as_it_is(self, tmp_path):
        source = TinySource.uniform(tmp_path, 1)
        source.checksum = lambda key: None
        slot = slot_for(SMALL)
        RecordReader(source, verify=True).read(keys_of(1)[0], SMALL, slot.record)
        assert slot.record == record_bytes(keys_of(1)[0], SMALL)


def test_a_record_smaller_than_its_slot_leaves_no_trace_of_the_last_one(tmp_path):
    layout = RecordLayout(name="tight", fields=SMALL.fields, nbytes=SMALL.payload_nbytes)
    source = TinySource(tmp_path, {keys_of(1)[0]: layout}, kind="aligned")
    slot = slot_for(LAYOUTS[0])
    RecordReader(source).read(keys_of(1)[0], layout, slot.record)
    assert slot.record[layout.nbytes :] == bytes(len(slot.record) - layout.nbytes)

"""Open files are shared, bounded and closed; one that took another's place, or was written to, is an error."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from cache.sources import run_threads
from coterie.errors import CoterieError
from coterie.records import LocalFile, files
from coterie.records.files import FileCache, FileChanged, file_stamps, pages_around


@pytest.fixture
def paths(tmp_path):
    paths = [tmp_path / f"{number}.bin" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100)
    return [LocalFile(path) for path in paths]


@pytest.fixture(params=[True, False], ids=["positioned", "seeking"])
def way(request, monkeypatch):
    """Files are read with preadv, or without."""
    monkeypatch.setattr(files, "HAS_PREADV", request.param)


@pytest.mark.usefixtures("way")
class TestFileCache:
    def test_it_reads_at_offsets_and_ends_at_the_end(self, paths):
        open_files = FileCache()
        buffer = bytearray(8)
        with open_files.reading(paths[3]) as file:
            assert file.read_at(memoryview(buffer), 96) == 4
            assert file.read_at(memoryview(buffer), 100) == 0
            assert file.size() == 100
            file.will_read(0, 100)
            file.drop(0, 100)
        assert buffer[:4] == b"\x03" * 4

    def test_it_keeps_a_bounded_number_open(self, paths):
        open_files = FileCache(limit=2)
        for path in paths:
            with open_files.reading(path):
                pass
        assert open_files.open_count == 2
        with open_files.reading(paths[0]), open_files.reading(paths[1]), open_files.reading(paths[2]):
            assert open_files.open_count == 3
        assert open_files.open_count == 2

    def test_closing_closes_what_nobody_reads_and_the_rest_later(self, paths):
        open_files = FileCache()
        with open_files.reading(paths[0]) as file, open_files.reading(paths[1]):
            open_files.close()
            buffer = bytearray(1)
            assert file.read_at(memoryview(buffer), 0) == 1
            assert open_files.open_count == 2
        assert open_files.open_count == 0
        with pytest.raises(OSError, match="closed") as caught, open_files.reading(paths[0]):
            pass
        assert caught.value.errno == errno.EBADF
        assert not isinstance(caught.value, CoterieError)

    def test_threads_share_a_file(self, paths):
        open_files = FileCache(limit=1)

        def read(number):
            def run():
                for _ in range(50):
                    buffer = bytearray(10)
                    with open_files.reading(paths[number]) as file:
                        assert file.read_at(memoryview(buffer), 20) == 10
                    assert buffer == bytes([number]) * 10

            return run

        run_threads(*(read(number % 3) for number in range(6)))
        assert open_files.open_count == 1


@pytest.fixture
def open_files(way):
    open_files = FileCache(limit=1)
    yield open_files
    open_files.close()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"first" * 2000)
    os.utime(path, ns=(1, 1))
    return path


def read(open_files, path, stamp):
    buffer = bytearray(5)
    with open_files.reading(LocalFile(path, stamp)) as file:
        assert file.read_at(memoryview(buffer), 0) == 5
    return bytes(buffer)


def test_a_replaced_file_is_not_read(open_files, path, tmp_path):
    stamp = file_stamps([path])[path]
    assert read(open_files, path, stamp) == b"first"
    other = shutil.copy2(path, tmp_path / "other")
    Path(other).replace(path)
    # It is open, so it still is what it was.
    assert read(open_files, path, stamp) == b"first"
    read(open_files, shutil.copy(path, tmp_path / "third"), None)  # only one stays open
    with pytest.raises(FileChanged, match="replaced by another file"):
        read(open_files, path, stamp)


def test_a_file_that_is_written_to_is_not_read_even_if_it_is_open(open_files, path):
    stamp = file_stamps([path])[path]
    with open_files.reading(LocalFile(path, stamp)) as file:
        buffer = memoryview(bytearray(5))
        assert file.read_at(buffer, 0) == 5
        with path.open("r+b") as other:
            other.write(b"other")
        with pytest.raises(FileChanged, match="written to"):
            file.read_at(buffer, 0)


def test_a_link_to_the_same_file_is_the_same_file(open_files, path, tmp_path):
    """The Hub's cache is made of links."""
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read(open_files, link, file_stamps([link])[link]) == b"first"


@pytest.mark.parametrize("stamped", [True, False])
def test_a_fifo_blocks_nobody(open_files, path, stamped):
    stamp = file_stamps([path])[path] if stamped else None
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="FIFO"):
        read(open_files, path, stamp)
    assert open_files.open_count == 0


def test_equal_files_are_one_and_other_stamps_are_others(path):
    stamp = file_stamps([path])[path]
    assert len({LocalFile(path, stamp), LocalFile(Path(str(path)), file_stamps([path])[path])}) == 1
    os.utime(path, ns=(2, 2))
    assert len({LocalFile(path, stamp), LocalFile(path, file_stamps([path])[path]), LocalFile(path)}) == 3


def test_without_preadv_there_are_no_direct_reads(path, monkeypatch):
    monkeypatch.setattr(files, "HAS_DIRECT", False)
    with pytest.raises(OSError, match="no direct reads") as caught:
        LocalFile(path).open("direct")
    assert caught.value.errno == errno.EINVAL
    assert not FileCache().may_be_direct(LocalFile(path))


def test_pages_around_bytes_hold_them_and_little_more():
    assert pages_around(0, 1) == (0, 4096)
    assert pages_around(4095, 2) == (0, 8192)
    assert pages_around(4096, 4096) == (4096, 4096)

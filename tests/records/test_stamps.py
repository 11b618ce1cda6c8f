"""A file that took the place of another, or was written to, is an error, and keeps nobody waiting."""

import os
import shutil
from pathlib import Path

import pytest

from coterie.records.files import FileCache
from coterie.records.stamps import FileChanged, file_stamps


@pytest.fixture(params=[True, False], ids=["positioned", "seeking"])
def files(request):
    files = FileCache(positioned=request.param, limit=1)
    yield files
    files.close()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"first" * 2000)
    os.utime(path, ns=(1, 1))
    return path


def read(files, path, stamp):
    buffer = bytearray(5)
    with files.reading(path, stamp=stamp) as file:
        assert file.read_at(memoryview(buffer), 0) == 5
    return bytes(buffer)


def test_a_replaced_file_is_not_read(files, path, tmp_path):
    stamp = file_stamps([path])[path]
    assert read(files, path, stamp) == b"first"
    other = shutil.copy2(path, tmp_path / "other")
    Path(other).replace(path)
    # It is open, so it still is what it was.
    assert read(files, path, stamp) == b"first"
    read(files, shutil.copy(path, tmp_path / "third"), None)  # only one stays open
    with pytest.raises(FileChanged, match="replaced by another file"):
        read(files, path, stamp)


def test_a_file_that_is_written_to_is_not_read_even_if_it_is_open(files, path):
    stamp = file_stamps([path])[path]
    with files.reading(path, stamp=stamp) as file:
        buffer = memoryview(bytearray(5))
        assert file.read_at(buffer, 0) == 5
        with path.open("r+b") as other:
            other.write(b"other")
        with pytest.raises(FileChanged, match="written to"):
            file.read_at(buffer, 0)


def test_a_link_to_the_same_file_is_the_same_file(files, path, tmp_path):
    """The Hub's cache is made of links."""
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read(files, link, file_stamps([link])[link]) == b"first"


@pytest.mark.parametrize("stamped", [True, False])
def test_a_fifo_blocks_nobody(files, path, stamped):
    stamp = file_stamps([path])[path] if stamped else None
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="FIFO"):
        read(files, path, stamp)
    assert files.open_count == 0

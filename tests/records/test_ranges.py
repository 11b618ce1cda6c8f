"""Runs of bytes in order: whole, in pieces, of files that end early, and of what was written to meanwhile."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.records import LocalFile, files, pieces_of, ranges, read_range
from coterie.records.files import FileChanged, file_stamps

DATA = bytes(range(251)) * 40


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    os.utime(path, ns=(1, 1))
    return LocalFile(path, file_stamps([path])[path])


@settings(max_examples=40)
@given(st.integers(0, len(DATA) + 10), st.integers(0, len(DATA) + 10), st.sampled_from([1, 100, 4096, 10**6]))
@pytest.mark.parametrize("positioned", [True, False])
def test_a_run_is_what_the_file_has_of_it(file, positioned, offset, nbytes, piece):
    wanted = DATA[offset : offset + nbytes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "HAS_PREADV", positioned)
        patch.setattr(ranges, "_PIECE", piece)
        patch.setattr(ranges, "_AT_ONCE", piece)
        buffer = bytearray(nbytes)
        assert read_range(file, offset, memoryview(buffer)) == len(wanted)
        assert bytes(buffer) == wanted + bytes(nbytes - len(wanted))
        found = [bytes(part) for part in pieces_of(file, offset, nbytes)]
    assert b"".join(found) == wanted
    assert all(0 < len(part) <= piece for part in found)


def test_what_is_written_to_meanwhile_is_an_error(file, monkeypatch):
    monkeypatch.setattr(ranges, "_PIECE", 100)
    found = pieces_of(file, 0, 1000)
    next(found)
    file.path.write_bytes(DATA)
    with pytest.raises(FileChanged, match="written to"):
        next(found)
    with pytest.raises(FileChanged, match="written to"):
        read_range(file, 0, memoryview(bytearray(10)))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="Linux")
def test_what_was_read_leaves_the_page_cache(file, monkeypatch):
    advice = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, nbytes, kind: advice.append((offset, nbytes, kind)))
    monkeypatch.setattr(ranges, "_PIECE", 4096)
    assert b"".join(map(bytes, pieces_of(file, 100, 6000))) == DATA[100:6100]
    dropped = [call[:2] for call in advice if call[2] == os.POSIX_FADV_DONTNEED]
    assert dropped == [(100, 4096), (4196, 1904)]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="Linux")
@pytest.mark.parametrize("nbytes", [100, 4096, 4097, 6000])
def test_nothing_behind_a_run_is_asked_for(file, monkeypatch, nbytes):
    advice = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, nbytes, kind: advice.append((offset, nbytes, kind)))
    monkeypatch.setattr(ranges, "_PIECE", 4096)
    list(pieces_of(file, 100, nbytes))
    ahead = [(offset, count) for offset, count, kind in advice if kind == os.POSIX_FADV_WILLNEED]
    assert ahead == ([(4196, nbytes - 4096)] if nbytes > 4096 else [])

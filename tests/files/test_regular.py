"""Only regular files are opened, and no more of them is read than was asked for."""

from __future__ import annotations

import socket

import pytest

from coterie.files.regular import open_regular, read_bounded, regular_file
from odd_files import NAMED, make_odd


def test_reads_a_file_up_to_its_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than the limit of 4 bytes"):
        read_bounded(path, 4)
    with regular_file(path) as file:
        assert file.read(2) == b"12"


def test_a_link_is_followed_only_where_it_may_be(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_bounded(tmp_path / "b", 9) == b"x"
    with pytest.raises(OSError):
        open_regular(tmp_path / "b", links=False)


@pytest.mark.timeout(20)
def test_nothing_else_is_waited_for_or_read(tmp_path):
    for kind, said in NAMED.items():
        with pytest.raises(OSError, match=said) as told:
            read_bounded(make_odd(kind, tmp_path / kind), 10)
        assert isinstance(told.value, IsADirectoryError) == (kind == "directory")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError):
            read_bounded(tmp_path / "socket", 10)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_what_is_no_name_is_an_ordinary_error(name, tmp_path):
    with pytest.raises(OSError, match="not a name"):
        open_regular(f"{tmp_path}/{name}")

"""A file that others read is replaced whole, or not at all; what a path names stays what it is."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from coterie.errors import OutputError, UsageError
from coterie.files import replacing as module
from coterie.files.replacing import check_writable, replacing

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def write(path: Path, text: str = "new") -> None:
    with replacing(path) as partial:
        partial.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_takes_its_place(tmp_path):
    with replacing(tmp_path / "stats.json") as partial:
        partial.write_text("new")
        assert not (tmp_path / "stats.json").exists()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("stats.json", "new")]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_there_survives_an_error(error, tmp_path):
    (tmp_path / "stats.json").write_text("old")

    def fail():
        with replacing(tmp_path / "stats.json") as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("stats.json", "old")]


@pytest.mark.parametrize("links", [1, 2])
def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path, links, monkeypatch):
    path = tmp_path / "stats.json"
    path.write_text("old")
    if links == 2:
        os.link(path, tmp_path / "same")
        monkeypatch.setattr(os, "posix_fallocate", _no_space)

    def fail():
        with replacing(path) as partial:
            partial.write_text("much longer than before")
            if links == 1:
                _no_space()

    with pytest.raises(OutputError, match=r"stats\.json cannot be written: No space left") as caught:
        fail()
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert names(tmp_path) == ["same", "stats.json"][2 - links :]


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_the_mode_is_kept(tmp_path, mode):
    path = tmp_path / "stats.json"
    path.write_text("old")
    path.chmod(mode)
    write(path)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


def test_a_new_file_has_the_mode_that_files_have(tmp_path):
    (tmp_path / "plain").write_text("")
    write(tmp_path / "stats.json")
    assert (tmp_path / "stats.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
def test_the_owner_is_kept(tmp_path):
    path = tmp_path / "stats.json"
    path.write_text("old")
    os.chown(path, 1234, 4321)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path, there):
    (tmp_path / "folder").mkdir()
    real = tmp_path / "folder/real.json"
    if there:
        real.write_text("old")
    (tmp_path / "one").symlink_to("folder/real.json")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    write(tmp_path / "two")
    assert (tmp_path / "two").is_symlink()
    assert (tmp_path / "one").is_symlink()
    assert not real.is_symlink()
    assert real.read_text() == "new"
    assert names(tmp_path / "folder") == ["real.json"]


def test_other_names_of_a_file_keep_it(tmp_path):
    path = tmp_path / "stats.json"
    for text in ("a longer text than the new one", "x"):
        path.write_text(text)
        (tmp_path / "same").unlink(missing_ok=True)
        os.link(path, tmp_path / "same")
        write(path)
        assert (tmp_path / "same").read_text() == "new"
        assert path.stat().st_nlink == 2
    assert names(tmp_path) == ["same", "stats.json"]


def test_a_fifo_is_written_to(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    check_writable(path)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(path.read_text()), daemon=True)
    reader.start()
    write(path)
    reader.join(60)
    assert found == ["new"]
    assert stat.S_ISFIFO(path.lstat().st_mode)
    assert names(tmp_path) == ["fifo"]


@pytest.mark.skipif(not ROOT, reason="only root makes devices")
def test_a_device_is_written_to(tmp_path):
    path = tmp_path / "null"
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    check_writable(path)
    write(path)
    assert stat.S_ISCHR(path.lstat().st_mode)
    assert names(tmp_path) == ["null"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_stdout_goes_on_where_it_is(tmp_path, name, to):
    if not Path(name).parent.is_dir():
        pytest.skip("there is no such name here")
    code = (
        "import sys\nfrom coterie.files.replacing import check_writable, replacing\n"
        "print('before')\ncheck_writable(sys.argv[1])\n"
        "with replacing(sys.argv[1]) as partial:\n    partial.write_text('new\\n')\nprint('after')\n"
    )
    command = [sys.executable, "-c", code, name]
    if to == "pipe":
        text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    else:
        with (tmp_path / "out").open("w") as out:
            subprocess.run(command, stdout=out, check=True)
        text = (tmp_path / "out").read_text()
    assert text == "before\nnew\nafter\n"


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EACCES])
def test_what_cannot_be_replaced_is_written_into(tmp_path, monkeypatch, code):
    """A single file that is mounted into a container, or one in a folder that is read-only."""
    path = tmp_path / "stats.json"
    path.write_text("a longer text than the new one")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", refuse)
    write(path)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["stats.json"]
    monkeypatch.setattr(module.secrets, "token_hex", refuse)
    write(path, "again")
    assert path.read_text() == "again"


def test_nothing_that_lies_ready_beside_it_is_followed(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("precious")
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: "0")
    (tmp_path / ".stats.json.0.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError):
        write(tmp_path / "stats.json")
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/stats.json", "."])
def test_where_nothing_can_be_written(tmp_path, name):
    with pytest.raises(UsageError):
        check_writable(tmp_path / name)
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_what_is_no_name_is_an_output_that_cannot_be_written(tmp_path, name) -> None:
    with pytest.raises(OutputError, match="not a name"), replacing(f"{tmp_path}/{name}") as partial:
        partial.write_text("x")
    assert names(tmp_path) == []

"""One rule for every text of a user: UTF-8 in any locale, no byte order mark, an error that names the byte."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from coterie.errors import InputError
from coterie.files import text as module
from coterie.files.text import decode_text, prompt_or_file, read_prompt, read_prompt_from_stdin, read_text, text_parts

MARK = b"\xef\xbb\xbf"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.txt"


def parts(path: Path) -> str:
    return "".join(text_parts(path))


@pytest.mark.parametrize("read", [read_text, parts])
def test_a_byte_order_mark_is_no_text_and_line_ends_stay(path: Path, read) -> None:
    path.write_bytes(MARK + "a\r\né\ufeffb".encode())
    assert read(path) == "a\r\né\ufeffb"  # within a text it is a character like others
    path.write_bytes(MARK)
    assert read(path) == ""


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_prompt_ends_where_its_last_line_ends(path: Path, end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    content = MARK + b"hello" + end + b"there" + end
    path.write_bytes(content)
    assert read_prompt(path) == "hello\nthere"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    assert read_prompt_from_stdin() == "hello\nthere"


@pytest.mark.parametrize("read", [read_text, read_prompt, parts])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc \xff", "is not UTF-8 text .invalid start byte at byte 4"),
        (b"\xc3", "is not UTF-8 text .unexpected end of data at byte 0"),
        ("wide".encode("utf-16"), "is UTF-16 text, not UTF-8"),
        (b"caf\xe9 au lait", "is not UTF-8 text .invalid continuation byte at byte 3"),
    ],
)
def test_bytes_that_are_no_utf8_are_named(path: Path, read, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert caught.value.path == path


def test_a_late_byte_has_its_place_in_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 7)
    path.write_bytes("éééé".encode() * 20 + b"\xff")
    with pytest.raises(InputError, match="at byte 160"):
        parts(path)


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
def test_parts_end_between_lines_and_lose_nothing(path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    text = "".join(f"lîne {number}{'x' * (number % 40)}\r\n" for number in range(200)) + "y" * 500
    path.write_bytes(MARK + text.encode())
    found = list(text_parts(path, characters=100))
    assert "".join(found) == text
    assert all(len(part) <= 200 for part in found)
    assert all(part.endswith("\n") for part in found[:30])


def test_what_has_no_text_is_told_where_some_is_needed(path: Path) -> None:
    for content in (b"", b" \n\n", MARK):
        path.write_bytes(content)
        assert not read_text(path).strip()
        with pytest.raises(InputError, match="is empty"):
            read_text(path, filled=True)


@pytest.mark.parametrize("read", [read_text, parts])
def test_what_is_no_file_is_named(tmp_path: Path, read) -> None:
    with pytest.raises(InputError, match=r"nowhere.txt cannot be read: No such file"):
        read(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="Is a directory"):
        read(tmp_path)
    with pytest.raises(InputError, match="it is a device"):
        read("/dev/zero")
    with pytest.raises(InputError, match="not a name"):
        read("a\0b")


def test_a_pipe_is_read_to_its_end_and_one_without_a_writer_is_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert read_text(fifo) == ""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(b"from a command\n" * 10_000)

    writer = threading.Thread(target=write)
    writer.start()
    assert read_text(f"/dev/fd/{reading}") == "from a command\n" * 10_000
    writer.join()
    os.close(reading)


def test_a_text_beyond_the_limit_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 10)
    path.write_bytes(b"x" * 11)
    with pytest.raises(InputError, match="larger than the limit"):
        read_text(path)


def test_bytes_from_elsewhere_follow_the_rule() -> None:
    assert decode_text(MARK + b"x", "here") == "x"
    with pytest.raises(InputError, match="here is not UTF-8"):
        decode_text(b"\xff\xff", "here")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_locale_does_not_matter(path: Path, locale: str) -> None:
    path.write_text("größe", encoding="utf-8")
    code = (
        "import sys\nfrom coterie.files.text import *\n"
        "print(ascii([read_text(sys.argv[1]), ''.join(text_parts(sys.argv[1])), read_prompt_from_stdin()]))"
    )
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(path)]
    run = subprocess.run(command, input=path.read_bytes(), env=environment, capture_output=True, check=True)
    assert run.stdout.decode().strip() == ascii(["größe"] * 3)


def test_a_prompt_is_given_as_it_is_or_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("letter.txt").write_text("From the file.\n")
    Path("two words").write_text("From the other.")
    for given, text in (
        ("letter.txt", "From the file."),
        (str(tmp_path / "letter.txt"), "From the file."),
        ("two words", "From the other."),
        ("Dear reader, a/b is 3.5", "Dear reader, a/b is 3.5"),
        ("亲爱的读者。", "亲爱的读者。"),
        ("word\r\nword\n", "word\nword"),
        ("long " * 5000, "long " * 5000),
        ("", ""),
    ):
        assert prompt_or_file(given) == text
    for given in ("lettre.txt", "letters/first", "C:\\letters", "/letter", "lettre.md"):
        with pytest.raises(InputError, match=r"There is no file .*or give the text itself"):
            prompt_or_file(given)
    with pytest.raises(InputError, match="directory"):
        prompt_or_file(str(tmp_path))

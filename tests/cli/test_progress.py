import re
from types import SimpleNamespace

import pytest

from coterie.cli import progress
from coterie.spec import format_bytes


def test_plain_progress_line_has_bytes_speed_and_time_left() -> None:
    shown = progress._PlainProgress("extract", 100 * 2**20, amount=format_bytes, every_s=1e9)
    shown.advance(25 * 2**20)
    assert shown.line(5.0) == "extract: 25.00 MiB of 100.00 MiB, 5.00 MiB/s, 15 s left"


def test_plain_progress_without_a_total() -> None:
    shown = progress._PlainProgress("read", None, amount=format_bytes, every_s=1e9)
    shown.advance(1024)
    assert shown.line(1.0) == "read: 1.00 KiB, 1.00 KiB/s"


def test_byte_progress_prints_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 4.0, 11.0, 12.0])
    # The module's own clock, not that of everybody: other threads of this process may look at theirs.
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress.byte_progress("copy", 10) as advance:
        advance(2)
        advance(2)
        advance(6)
    assert capsys.readouterr().err == "copy: 4 B of 10 B, 0 B/s, 16 s left\n"


def test_byte_progress_is_a_bar_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.byte_progress("copy", 2048) as advance:
        advance(2048)
    err = capsys.readouterr().err
    assert "copy" in err
    assert "2.00 KiB of 2.00 KiB" in err


@pytest.mark.parametrize("columns", [50, 60, 72, 80, 100, 200])
def test_byte_progress_is_one_line_of_one_unit(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.byte_progress("Extracting", 53 * 2**20 + 2**18) as advance:
        advance(50 * 2**20)
    # Of what a bar draws, the last picture, without the colours and the cursor's ways.
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).rstrip("\n").split("\r")[-1]
    assert "\n" not in line
    assert len(line) <= columns
    assert "iB/s" in line
    assert "MB" not in line


def test_work_progress_has_a_share_and_no_amounts(capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress._PlainProgress("Recording", 400, amount=None, every_s=1e9)
    shown.advance(100)
    assert shown.line(5.0) == "Recording: 25%, 15 s left"
    with progress.work_progress("Recording", 400) as advance:
        advance(400)
    assert capsys.readouterr().err == ""

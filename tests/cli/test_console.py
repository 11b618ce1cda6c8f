import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from coterie.cli import console
from coterie.spec import BankKey


@dataclass(frozen=True)
class Inner:
    path: Path


@dataclass(frozen=True)
class Outer:
    inner: Inner
    names: frozenset[str]
    sizes: tuple[int, ...]


def test_json_writes_dataclasses_paths_and_sets(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json(Outer(inner=Inner(Path("/a/ü")), names=frozenset({"b", "a"}), sizes=(1, 2)))
    out = capsys.readouterr().out
    assert json.loads(out) == {"inner": {"path": "/a/ü"}, "names": ["a", "b"], "sizes": [1, 2]}
    assert "ü" in out


def test_json_writes_slotted_and_named_tuples(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"bank": BankKey("text", 0, "mlp")})
    assert json.loads(capsys.readouterr().out) == {"bank": ["text", 0, "mlp"]}


def test_json_refuses_what_it_cannot_write() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        console.print_json({"x": object()})


def test_messages_go_to_stderr_and_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_note("a [bold]note[/bold]")
    console.print_warning("mind [0]")
    console.print_error("broken " + "x" * 300)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"a [bold]note[/bold]\nWarning: mind [0]\nError: broken {'x' * 300}\n"


def test_tables_in_a_pipe_keep_long_paths_on_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    table = console.plain_table("path", "size", right=("size",))
    path = "/stores/" + "x" * 110
    table.add_row(path, "1 B")
    console.print_table(table)
    assert path in capsys.readouterr().out


def test_plain_progress_line_has_bytes_speed_and_time_left() -> None:
    progress = console._PlainProgress("extract", 100 * 2**20, every_s=1e9)
    progress.advance(25 * 2**20)
    assert progress.line(5.0) == "extract: 25.00 MiB of 100.00 MiB, 5.00 MiB/s, 15 s left"


def test_plain_progress_without_a_total() -> None:
    progress = console._PlainProgress("read", None, every_s=1e9)
    progress.advance(1024)
    assert progress.line(1.0) == "read: 1.00 KiB, 1.00 KiB/s"


def test_byte_progress_prints_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 4.0, 11.0, 12.0])
    # The module's own clock, not that of everybody: other threads of this process may look at theirs.
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with console.byte_progress("copy", 10) as advance:
        advance(2)
        advance(2)
        advance(6)
    assert capsys.readouterr().err == "copy: 4 B of 10 B, 0 B/s, 16 s left\n"


def test_byte_progress_is_a_bar_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True)
    with console.byte_progress("copy", 2048) as advance:
        advance(2048)
    err = capsys.readouterr().err
    assert "copy" in err
    assert "2.0/2.0 KiB" in err


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        ("Pass missing='mask', or 'drop'.", "Pass --missing mask, or 'drop'."),
        ('memory="648MiB" would do.', "--memory 648MiB would do."),
        ("expert_memory='0%' is not a share.", "--expert-memory 0% is not a share."),
        ("out of memory; missing file 'x'", "out of memory; missing file 'x'"),
    ],
)
def test_errors_name_options_and_not_parameters(said: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.print_error(said)
    assert capsys.readouterr().err == f"Error: {printed}\n"

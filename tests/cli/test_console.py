import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.text import Text

from coterie.cli import console
from coterie.cli.terminal import UNPRINTABLE, json_text
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


STEERING = "a\x1b[2Jb\x1b]0;title\x07c\rd\x9b1me\u202ef\ud800g"
SHOWN = "a\ufffd[2Jb\ufffd]0;title\ufffdc\ufffdd\ufffd1me\ufffdf\ufffdg"


@pytest.mark.parametrize("show", [console.print_note, console.print_warning, console.print_error])
def test_messages_cannot_steer_the_terminal(show, capsys: pytest.CaptureFixture[str]) -> None:
    show(STEERING)
    assert SHOWN in capsys.readouterr().err


def test_results_and_tables_cannot_steer_the_terminal_and_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x\x1b[31m [/nope] [link=http://evil]y[/link] :fire:"
    console.results().print(name)
    console.results().print(Text(name), style="bold")
    table = console.plain_table(name, "n", right=("n",))
    table.add_row(name, name)
    console.print_table(table)
    facts = console.facts_table()
    facts.add_row(name, name)
    console.print_table(facts)
    with console.notes().status(name):
        pass
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert captured.out.count("[/nope] [link=http://evil]y[/link] :fire:") == 7


def test_json_cannot_steer_the_terminal_and_is_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({STEERING: "ü \U0001f600"})
    out = capsys.readouterr().out
    assert not UNPRINTABLE.search(out)
    assert "ü \U0001f600" in out
    assert json.loads(out) == {STEERING: "ü \U0001f600"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_can_be_written_in_any_encoding(encoding: str) -> None:
    value = {"ü": "\U0001f600 \ud800 中"}
    text = json_text(json.dumps(value, ensure_ascii=False), encoding)
    assert json.loads(text.encode(encoding).decode(encoding)) == value


@pytest.mark.parametrize("show", [console.print_note, lambda text: console.results().print(text)])
def test_prose_in_a_terminal_is_broken_between_words(
    show, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for stream in (console.sys.stdout, console.sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    path = "/" + "long/" * 20
    words = f"A sentence of several words that ends with {path} and goes on after it for a while.".split()
    show(" ".join(words))
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).splitlines()
    assert len(lines) > 2
    assert " ".join(lines).split() == words
    assert all(len(line) <= 40 or path in line for line in lines)

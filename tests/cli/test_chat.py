import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from coterie.engine.completion import complete
from coterie.engine.conversation import Conversation

DATA = Path(__file__).parents[1] / "data"
FAST = ("--expert-memory", "100%", "-n", "4")


@pytest.fixture
def talk(coterie, monkeypatch):
    """Runs `coterie chat bundled` with these lines on stdin."""

    def run(*lines: str, options: tuple[str, ...] = ()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return coterie("chat", "bundled", *FAST, *options)

    return run


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, list[str]]]:
    """What the model was asked, and the contents of the conversation before; the model does not run."""
    seen: list[tuple[str, list[str]]] = []
    ask = Conversation.ask

    def remember(self, text, **options):
        seen.append((text, [str(message["role"]) for message in self.messages]))
        return ask(self, text, **options)

    monkeypatch.setattr(Conversation, "ask", remember)
    return seen


def test_each_line_is_a_turn_and_its_answer_a_line(talk, asked) -> None:
    outcome = talk("Hello, how are you", "", "And you", options=("-q",))
    assert (outcome.code, outcome.err) == (0, "")
    assert len(outcome.out.strip().splitlines()) >= 2
    assert asked == [("Hello, how are you", []), ("And you", ["user", "assistant"])]


def test_it_says_at_the_start_that_there_is_no_template(talk) -> None:
    outcome = talk()
    assert outcome.out == ""
    assert "no chat template" in outcome.err


def test_commands_are_not_turns(talk, asked, tmp_path) -> None:
    outcome = talk("/help", "/stats", "hi", "/reset", "hi", "/rest", "//x", "/quit", "never said")
    assert [text for text, _ in asked] == ["hi", "hi", "/x"]
    assert asked[1][1] == []
    for line in ("/image PATH", "hit rate", "The conversation is forgotten.", "Did you mean /reset?"):
        assert line in outcome.err
    assert outcome.code == 0


def test_media_go_with_the_next_message(talk, tmp_path) -> None:
    outcome = talk(f"/audio {DATA / 'go.wav'}", "", "/reset", f"/image {DATA / 'sandal.png'}", "", options=("-n", "12"))
    assert outcome.out == "go\na photo of a sandal\n"
    outcome = talk("/image /nowhere.png", "/audio", f"/image {DATA / 'go.wav'}", "what?", "/quit")
    assert "There is no file '/nowhere.png'" in outcome.err
    assert "/audio needs the path" in outcome.err
    assert "go.wav" in outcome.err  # not a picture, and the session went on
    assert (outcome.code, outcome.out) == (0, "")


def test_a_conversation_that_is_too_long_says_how_to_go_on(talk, asked) -> None:
    options = ("--memory", "6GiB", "--expert-memory", "36MiB", "--max-context", "12")
    outcome = talk("Hello, how are you", "And what is that to you", "/reset", "hi", options=options)
    assert "/reset" in outcome.err
    assert outcome.code == 0
    assert asked[-1] == ("hi", [])


def test_statistics_are_written_at_the_end(talk, tmp_path) -> None:
    talk("hi", options=("--stats", str(tmp_path / "s.json")))
    assert json.loads((tmp_path / "s.json").read_text())["decode_tokens"]["thinker"] == 3


def test_ctrl_c_stops_the_answer_and_keeps_the_session(talk, monkeypatch) -> None:
    pressed: list[str] = []

    def press_after_the_first_piece(*arguments, on_text, **options):
        def on_piece(piece: str) -> None:
            on_text(piece)
            if not pressed:
                pressed.append(piece)
                os.kill(os.getpid(), signal.SIGINT)

        return complete(*arguments, on_text=on_piece, **options)

    monkeypatch.setattr("coterie.engine.conversation.complete", press_after_the_first_piece)
    before = signal.getsignal(signal.SIGINT)
    outcome = talk("Hello, how are you", "And you")
    assert outcome.code == 0
    assert "(interrupted)" in outcome.err
    assert "4 new" in outcome.err  # the second answer is whole
    assert signal.getsignal(signal.SIGINT) is before


def test_in_a_terminal_it_asks_and_ends_with_ctrl_d(coterie, monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said = iter(["hi", KeyboardInterrupt(), EOFError()])

    def read(prompt: str) -> str:
        line = next(said)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", read)
    outcome = coterie("chat", "bundled", *FAST)
    assert outcome.code == 0
    assert outcome.out.strip()
    assert "Ctrl-D or /quit ends." in outcome.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("/nowhere/model",), 1, "/nowhere/model"),
        (("bundled", "--eviction", "lurk"), 2, "Did you mean 'lru'?"),
        (("bundled", "--memory", "64MiB"), 1, "would do"),
        (("bundled", "--stats", "/nowhere/x.json"), 2, "There is no directory"),
    ],
)
def test_errors_are_one_message_and_the_right_code(coterie, arguments, code, message) -> None:
    outcome = coterie("chat", *arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.out == ""

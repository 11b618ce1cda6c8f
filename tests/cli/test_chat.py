import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from coterie.generation.completion import Completing
from coterie.generation.conversation import Conversation

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
    assert outcome.code == 1  # for /rest


def test_media_go_with_the_next_message(talk, tmp_path) -> None:
    outcome = talk(f"/audio {DATA / 'go.wav'}", "", "/reset", f"/image {DATA / 'sandal.png'}", "", options=("-n", "12"))
    assert outcome.out == "go\na photo of a sandal\n"
    outcome = talk("/image /nowhere.png", "/audio", f"/image {DATA / 'go.wav'}", "what?", "/quit")
    assert "There is no file '/nowhere.png'" in outcome.err
    assert "/audio needs the path" in outcome.err
    assert "go.wav" in outcome.err  # not a picture, and the session went on
    assert (outcome.code, outcome.out) == (1, "")


def test_a_full_context_forgets_the_oldest_turns(talk, asked) -> None:
    options = ("--memory", "6GiB", "--expert-memory", "36MiB", "--max-context", "24")
    outcome = talk("Hello, how are you", "And what is that to you", "And who are they", options=options)
    assert outcome.code == 0
    assert "The context is full: the oldest 4 messages were forgotten." in outcome.err
    assert "--max-context" in outcome.err
    assert len(asked) == 3
    # Nothing is to be gone on with: no more is forgotten than has to be.
    outcome = talk(
        "Hello, how are you", "And what is that to you", "And who are they", options=(*options, "--no-reuse")
    )
    assert "The context is full: the oldest 2 messages were forgotten." in outcome.err


def test_thinking_is_a_switch_of_the_template(talk, tmp_path) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ ' thinks' if enable_thinking else ' says' }}"
    )
    options = ("--chat-template", str(template))
    answers = {
        name: talk("God", options=(*options, "--greedy", *given)).out
        for name, given in (("yes", ("--think",)), ("no", ("--no-think",)))
    }
    assert answers["yes"] != answers["no"]
    outcome = talk("God", "/set think on", "/retry", "/set think maybe", options=(*options, "--greedy", "--no-think"))
    assert outcome.out == answers["no"] + answers["yes"]
    assert "Say on or off" in outcome.err
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{{ effort }}")
    outcome = talk("God", options=(*options, "--no-think"))
    assert "has no switch for thinking. It reads effort." in outcome.err
    assert talk("God", options=(*options, "--template-option", "efort=low")).code != 0
    assert talk("God", "/set think off", options=options).code == 1
    assert "It can be told nothing." in talk("God", options=("--think",)).err


def test_what_was_reused_is_said(talk) -> None:
    assert "of them reused)" in talk("Hello, how are you", "And what", options=()).err
    assert "reused" not in talk("Hello, how are you", "And what", options=("--no-reuse",)).err


def test_a_message_that_is_too_long_by_itself_is_a_failed_turn(talk, asked) -> None:
    options = ("--memory", "6GiB", "--expert-memory", "36MiB", "--max-context", "12")
    outcome = talk("And what is that to you and to me and to all of us who came to pass", "hi", options=options)
    assert "--max-context" in outcome.err
    assert len(outcome.out.strip().splitlines()) == 1
    assert outcome.code == 1


def test_turns_are_undone_retried_kept_and_loaded(talk, asked, tmp_path) -> None:
    file = tmp_path / "talk.json"
    outcome = talk(
        "hi", "/retry", "/undo", "/undo", "a", f"/save {file}", "/load " + str(file), "b", options=("--greedy",)
    )
    assert outcome.code == 0
    answers = [line for line in outcome.out.splitlines() if line]
    assert answers[0] == answers[1]
    assert asked[-1] == ("b", ["user", "assistant"])
    assert [message["role"] for message in json.loads(file.read_text())["messages"]] == ["user", "assistant"]
    assert "There is no message to forget." in outcome.err
    assert talk("/load /nowhere.json", "/retry", "/save").code == 1


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\0b", "/nowhere/x", "/", ""])
def test_what_is_no_file_is_told_and_the_conversation_goes_on(talk, asked, path) -> None:
    outcome = talk(f"/save {path}", f"/load {path}", f"/image {path}", f"/audio {path}", "hi")
    assert outcome.code == 1
    assert len(outcome.err.split("Error: ")) == 5
    assert "bug" not in outcome.err
    assert [text for text, _ in asked] == ["hi"]


def test_settings_and_the_system_message_change(talk, monkeypatch) -> None:
    seen = []

    def remember(self, text, **options):
        seen.append((self.sampling, self.messages))
        return ask(self, text, **options)

    ask = Conversation.ask
    monkeypatch.setattr(Conversation, "ask", remember)
    lines = ("/set temperature 0.7", "/set parameter top_k 5", "/set stop x 'y z'", "/system Be brief.", "hi")
    assert talk(*lines, options=("--greedy",)).code == 0
    sampling, messages = seen[0]
    assert (sampling.temperature, sampling.top_k, sampling.stop, sampling.greedy) == (0.7, 5, ("x", "y z"), None)
    assert messages == [{"role": "system", "content": "Be brief."}]
    outcome = talk("/set temprature 1", "/set top_p 7", "/set top_k x", "/set")
    assert outcome.code == 1
    assert "Did you mean 'temperature'?" in outcome.err
    assert "--top-p must be" in outcome.err


def test_several_lines_are_one_message_between_quotes(talk, asked) -> None:
    talk('"""', "one", "", "two", '"""', '"""three"""', "/bye", "never said")
    assert [text for text, _ in asked] == ["one\n\ntwo", "three"]


def test_lines_are_utf8_whatever_the_locale_is(coterie, monkeypatch, asked) -> None:
    data = "\ufeffGröße\r\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"))
    assert coterie("chat", "bundled", *FAST).code == 0
    assert asked == [("Größe", [])]


def test_a_line_that_is_not_utf8_is_a_failed_turn_and_no_more(coterie, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\nhi\n"), encoding="utf-8"))
    outcome = coterie("chat", "bundled", *FAST)
    assert outcome.code == 1
    assert "is not UTF-8 text" in outcome.err
    assert len(outcome.out.strip().splitlines()) == 1


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

        return Completing(*arguments, on_text=on_piece, **options)

    monkeypatch.setattr("coterie.generation.conversation.Completing", press_after_the_first_piece)
    before = signal.getsignal(signal.SIGINT)
    outcome = talk("Hello, how are you", "And you")
    assert outcome.code == 0
    assert "(interrupted)" in outcome.err
    assert "4 new" in outcome.err  # the second answer is whole
    assert signal.getsignal(signal.SIGINT) is before


def test_an_answer_goes_on_where_it_was_cut(talk) -> None:
    whole = talk("Hello, how are you", options=("--greedy", "-n", "12", "-q"))
    cut = talk("/continue", "Hello, how are you", "/continue", "/continue", options=("--greedy", "-q"))
    assert cut.code == 1
    assert "There is no answer that could go on." in cut.err
    assert cut.out.replace("\n", "") == whole.out.replace("\n", "")


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

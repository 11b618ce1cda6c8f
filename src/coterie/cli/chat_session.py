"""The loop of `coterie chat`: reads a line, obeys it or has it answered."""

from __future__ import annotations

import difflib
import io
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cli.answer import AnswerPrinter, experts_line, summary
from coterie.cli.console import print_error, print_note
from coterie.cli.interrupts import ctrl_c_requests_stop
from coterie.errors import ContextLengthError, CoterieError, UsageError

if TYPE_CHECKING:
    from coterie.generation.completion import Completion
    from coterie.generation.conversation import Conversation
    from coterie.generation.opened import OpenModel

_COMMANDS = {
    "/help": "this list",
    "/image PATH": "show a picture with the next message",
    "/audio PATH": "play a sound file with the next message",
    "/video PATH": "show a video with the next message",
    "/system TEXT": "another system message; without a text, none",
    "/set NAME VALUE": "how tokens are chosen, such as temperature 0.7; think on or off",
    "/retry": "have the last message answered once more",
    "/continue": "have the last answer go on, if -n or Ctrl-C has cut it",
    "/undo": "forget the last message and its answer",
    "/save FILE": "keep the conversation in a file",
    "/load FILE": "go on with a conversation that was kept",
    "/reset": "forget the conversation (/clear does too)",
    "/stats": "what the experts' cache did so far",
    "/quit": "leave (/bye, /exit and Ctrl-D do too; Ctrl-C stops an answer)",
}
_LEAVE = ("/quit", "/exit", "/bye")
_BLOCK = '"""'
_SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "repeat_penalty": ("repetition_penalty", float),
    "seed": ("seed", int),
    "max_new_tokens": ("max_new_tokens", int),
    "stop": ("stop", lambda text: tuple(shlex.split(text))),
}
"""What /set knows -> the field of Sampling, and how its value is read."""
_OTHER_NAMES = {"temp": "temperature", "repetition_penalty": "repeat_penalty", "num_predict": "max_new_tokens"}


@dataclass(slots=True, kw_only=True)
class ChatSession:
    """A conversation on the terminal or through a pipe.

    Attributes:
        opened: The model.
        conversation: With it.
        quiet: Leave remarks out.
        images: Pictures that go with the next message.
        audios: Sounds likewise.
        videos: Videos likewise.
        failed: Whether a line of a pipe came to nothing. In a terminal the user has seen it, and may have tried again.
    """

    opened: OpenModel
    conversation: Conversation
    quiet: bool
    images: list[Path] = field(default_factory=list)
    audios: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    failed: bool = False

    def run(self) -> None:
        """Until the end of input or /quit."""
        self._greet()
        for line in _messages(_lines()):
            text = line.strip()
            try:
                if text.startswith("/") and not text.startswith("//"):
                    if text.split()[0] in _LEAVE:
                        return
                    self._obey(text)
                elif text or self.images or self.audios or self.videos:
                    self._ask(text[1:] if text.startswith("//") else text)
            except ContextLengthError as error:
                self._fail(f"{error.message} Write less at once, or begin with a larger --max-context.")
            except CoterieError as error:
                self._fail(str(error))

    def _fail(self, message: str) -> None:
        print_error(message)
        self.failed |= not sys.stdin.isatty()

    def _greet(self) -> None:
        if self.quiet:
            return
        name = self.opened.runtime.source.name
        if self.conversation.templated:
            print_note(f"{name}: /help lists commands, Ctrl-D ends.")
        else:
            print_note(
                f"{name} has no chat template: it was not trained to chat, and continues what you write as a text. "
                f"/help lists commands, Ctrl-D ends."
            )

    def _obey(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        match name:
            case "/help" | "/?":
                for usage, meaning in _COMMANDS.items():
                    print_note(f"{usage:<16} {meaning}")
            case "/reset" | "/clear":
                self.conversation.reset()
                self._detach()
                print_note("The conversation is forgotten.")
            case "/stats":
                print_note(self._stats())
            case "/image" | "/audio" | "/video":
                self._attach(name, argument)
            case "/system":
                self.conversation.instruct(argument)
                print_note("The next answers follow it." if argument else "There is no system message now.")
            case "/set":
                self._set(argument)
            case "/retry":
                self._show(self.conversation.retry)
            case "/continue":
                self._show(self.conversation.go_on)
            case "/undo":
                undone = self.conversation.undo()
                print_note("The last message is forgotten." if undone else "There is no message to forget.")
            case "/save" | "/load":
                self._keep(name, argument)
            case _:
                known = [usage.split()[0] for usage in _COMMANDS]
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean {near[0]}?" if near else "/help lists the commands."
                raise UsageError(f"Unknown command {name}. {hint}")

    def _attach(self, name: str, argument: str) -> None:
        path = _path(name, argument)
        if not path.is_file():
            raise UsageError(f"There is no file {argument!r}.")
        {"/image": self.images, "/audio": self.audios, "/video": self.videos}[name].append(path)
        print_note(f"{path.name} goes with your next message; an empty line sends it alone.")

    def _detach(self) -> None:
        """Nothing goes with the next message."""
        for files in (self.images, self.audios, self.videos):
            files.clear()

    def _set(self, argument: str) -> None:
        words = argument.removeprefix("parameter ").split(maxsplit=1)
        if len(words) != 2:
            raise UsageError("/set needs a name and a value.", advice=f"Names: {', '.join(_SETTINGS)}, system, think.")
        name, text = words
        name = name.lstrip("-").replace("-", "_")
        name = _OTHER_NAMES.get(name, name)
        if name == "system":
            self.conversation.instruct(text)
            return
        if name == "think":
            self.conversation.options = replace(self.conversation.options, thinking=_switch(name, text))
            print_note(f"{name} is {text} from now on.")
            return
        if name not in _SETTINGS:
            raise UsageError.unknown("setting", name, (*_SETTINGS, "system", "think"))
        attribute, read = _SETTINGS[name]
        try:
            value = read(text)
        except ValueError as error:
            raise UsageError(f"{text!r} is not a value of {name}.") from error
        # Greedy decoding was a wish of the command line; a wish for sampling now is the later one.
        changed = {attribute: value} | (
            {"greedy": None} if attribute in ("temperature", "top_p", "top_k", "min_p") else {}
        )
        self.conversation.sampling = replace(self.conversation.sampling, **changed)
        print_note(f"{name} is {text} from now on.")

    def _keep(self, name: str, argument: str) -> None:
        path = _path(name, argument)
        if name == "/load":
            self.conversation.restore(path)
            print_note(f"{len(self.conversation.messages)} messages were loaded.")
            return
        self.conversation.save(path)
        print_note(f"The conversation is in {path}.")

    def _ask(self, text: str) -> None:
        try:
            files = {"images": tuple(self.images), "audios": tuple(self.audios), "videos": tuple(self.videos)}
            self._show(self.conversation.ask, text, **files)
        finally:
            self._detach()

    def _show(self, ask: Callable[..., Completion], *arguments: Any, **options: Any) -> None:
        """Has something answered and shows the answer."""
        printer = AnswerPrinter(quiet=self.quiet)
        with ctrl_c_requests_stop() as pressed:
            answer = ask(
                *arguments, on_text=printer.text, on_reasoning=printer.reasoning, should_stop=pressed, **options
            )
        printer.end(answer)
        if self.quiet:
            return
        if self.conversation.forgotten:
            print_note(
                f"The context is full: the oldest {self.conversation.forgotten} messages were forgotten. "
                f"--max-context makes room for more."
            )
        print_note(summary(answer, self.opened.runtime.stats()))

    def _stats(self) -> str:
        stats = self.opened.runtime.stats()
        total = stats.total
        return (
            f"{sum(stats.prefill_tokens.values())} tokens of prompts, {sum(stats.decode_tokens.values())} generated; "
            f"{experts_line(stats)}; {total.misses} reads, waited {total.wait_s:.1f} s for them"
        )


def _switch(name: str, text: str) -> bool:
    """A value that is on or off."""
    values = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    if text.lower() not in values:
        raise UsageError(f"{text!r} is not a value of {name}.", advice="Say on or off.")
    return values[text.lower()]


def _path(command: str, argument: str) -> Path:
    """The file that a command names."""
    if not argument:
        raise UsageError(f"{command} needs the path of a file.")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:  # there is no such user
        raise UsageError(f"There is no file {argument!r}: nobody has that home directory.") from error


def _messages(lines: Iterator[str]) -> Iterator[str]:
    """The lines, those between two lines of three quotes as one."""
    for line in lines:
        begun = line.strip()
        if not begun.startswith(_BLOCK):
            yield line
            continue
        block = begun[len(_BLOCK) :]
        if block.endswith(_BLOCK) and block:
            yield block.removesuffix(_BLOCK)
            continue
        parts = [block] if block else []
        for more in lines:
            if more.rstrip().endswith(_BLOCK):
                parts.append(more.rstrip().removesuffix(_BLOCK))
                break
            parts.append(more.rstrip("\n"))
        yield "\n".join(parts)


def _lines() -> Iterator[str]:
    """Lines of input until its end; in a terminal with a prompt, line editing and history."""
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            # UTF-8 whatever the locale is, without a byte order mark; a line that is none is an error of that line.
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() line editing and history where Python has it
    while True:
        try:
            yield input("> ")
        except EOFError:
            print_note("")
            return
        except KeyboardInterrupt:
            print_note("\nCtrl-D or /quit ends.")

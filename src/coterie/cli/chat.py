"""`coterie chat`: a conversation in the terminal, or one turn per line from a pipe."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli import options as shared
from coterie.cli.answer import experts_line, summary, write_text
from coterie.cli.console import print_error, print_note
from coterie.cli.files import check_writable
from coterie.cli.generation_options import (
    DomainOption,
    ExpertsPerTokenOption,
    GreedyOption,
    MaxNewTokensOption,
    ProfileFileOption,
    QuietOption,
    SeedOption,
    StatsFileOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    check_domain,
)
from coterie.cli.interrupts import ctrl_c_requests_stop
from coterie.cli.opening import OpenOptions, open_model
from coterie.errors import ContextLengthError, InputError
from coterie.spec import DEFAULT_POLICY, DEFAULT_PREFETCH

if TYPE_CHECKING:
    from coterie.engine.conversation import Conversation
    from coterie.engine.opened import OpenModel

_COMMANDS = {
    "/help": "this list",
    "/image PATH": "show a picture with the next message",
    "/audio PATH": "play a WAV file with the next message",
    "/reset": "forget the conversation",
    "/stats": "what the experts' cache did so far",
    "/quit": "leave (Ctrl-D does too; Ctrl-C stops an answer)",
}


def command(
    model: shared.ModelArgument,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", show_default=False, help="A system message to begin with."),
    ] = None,
    memory: shared.MemoryOption = None,
    expert_memory: shared.ExpertMemoryOption = None,
    component: shared.ComponentOption = None,
    missing: shared.MissingOption = None,
    source: shared.SourceOption = None,
    eviction: shared.ProfiledEvictionOption = DEFAULT_POLICY,
    prefetch: shared.PrefetchOption = DEFAULT_PREFETCH,
    profile: shared.ProfileOption = None,
    warm: shared.WarmOption = None,
    pin: shared.PinOption = None,
    experts_per_token: ExpertsPerTokenOption = None,
    max_context: shared.MaxContextOption = None,
    verify_reads: shared.VerifyReadsOption = False,
    revision: shared.RevisionOption = None,
    offline: shared.OfflineOption = False,
    threads: shared.ThreadsOption = None,
    max_new_tokens: MaxNewTokensOption = 256,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = None,
    greedy: GreedyOption = None,
    stats: StatsFileOption = None,
    record_profile: ProfileFileOption = None,
    domain: DomainOption = None,
    quiet: QuietOption = False,
) -> None:
    """Talks with a model. Answers stream to stdout; everything else goes to stderr.

    Where the model has a chat template, it is used. Where it has none, the model was not trained to chat, and continues
    the conversation so far as a text.

    Lines that begin with a slash are commands; /help lists them. A message that begins with a slash is written with
    two. When stdin is not a terminal, each line is one turn, and nothing is asked.
    """
    if stats is not None:
        check_writable(stats)
    checked_domain = check_domain(domain, record_profile)
    from coterie.engine.sampling import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, greedy=greedy
    )
    options = OpenOptions(
        memory=memory,
        expert_memory=expert_memory,
        component=component,
        missing=missing,
        source=source,
        eviction=eviction,
        prefetch=prefetch,
        profile=profile,
        warm=warm,
        pin=pin,
        experts_per_token=experts_per_token,
        max_context=max_context,
        verify_reads=verify_reads,
        revision=revision,
        offline=offline,
        threads=threads,
    )
    with open_model(model, options, quiet=quiet) as opened:
        from coterie.engine.conversation import Conversation

        conversation = Conversation(opened.model, opened.processors, sampling=sampling, system=system)
        with ExitStack() as stack:
            if stats is not None:
                stack.callback(opened.runtime.write_stats, stats)
            if record_profile is not None:
                stack.enter_context(opened.runtime.record_profile(record_profile, domain=checked_domain))
            _Chat(opened=opened, conversation=conversation, quiet=quiet).run()


@dataclass(slots=True, kw_only=True)
class _Chat:
    """The loop: reads a line, obeys it or answers it."""

    opened: OpenModel
    conversation: Conversation
    quiet: bool
    images: list[Path] = field(default_factory=list)
    audios: list[Path] = field(default_factory=list)

    def run(self) -> None:
        """Until the end of input or /quit."""
        self._greet()
        for line in _lines():
            text = line.strip()
            if text.startswith("/") and not text.startswith("//"):
                if text.split()[0] in ("/quit", "/exit"):
                    return
                self._obey(text)
            elif text or self.images or self.audios:
                self._answer(text[1:] if text.startswith("//") else text)

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
            case "/help":
                for usage, meaning in _COMMANDS.items():
                    print_note(f"{usage:<12} {meaning}")
            case "/reset":
                self.conversation.reset()
                self.images.clear()
                self.audios.clear()
                print_note("The conversation is forgotten.")
            case "/stats":
                print_note(self._stats())
            case "/image" | "/audio":
                self._attach(name, argument)
            case _:
                known = [usage.split()[0] for usage in _COMMANDS]
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean {near[0]}?" if near else "/help lists the commands."
                print_error(f"Unknown command {name}. {hint}")

    def _attach(self, name: str, argument: str) -> None:
        path = Path(argument).expanduser()
        if not argument or not path.is_file():
            print_error(f"There is no file {argument!r}." if argument else f"{name} needs the path of a file.")
            return
        (self.images if name == "/image" else self.audios).append(path)
        print_note(f"{path.name} goes with your next message; an empty line sends it alone.")

    def _answer(self, text: str) -> None:
        try:
            with ctrl_c_requests_stop() as pressed:
                answer = self.conversation.ask(
                    text, images=self.images, audios=self.audios, on_text=write_text, should_stop=pressed
                )
        except ContextLengthError as error:
            print_error(f"{error.message} /reset begins a new conversation; --max-context makes room for more.")
            return
        except InputError as error:
            print_error(str(error))
            return
        finally:
            self.images.clear()
            self.audios.clear()
        write_text("\n")
        if not self.quiet:
            print_note(summary(answer, self.opened.runtime.stats()))

    def _stats(self) -> str:
        stats = self.opened.runtime.stats()
        total = stats.total
        return (
            f"{sum(stats.prefill_tokens.values())} tokens of prompts, {sum(stats.decode_tokens.values())} generated; "
            f"{experts_line(stats)}; {total.misses} reads, waited {total.wait_s:.1f} s for them"
        )


def _lines() -> Iterator[str]:
    """Lines of input until its end; in a terminal with a prompt, line editing and history."""
    if not sys.stdin.isatty():
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

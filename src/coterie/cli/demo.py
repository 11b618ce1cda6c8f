"""`coterie demo`: the bundled model at work, end to end, with proof of exactness."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from coterie.cli.console import print_error, print_json
from coterie.cli.opening import import_engine, quiet_terminal
from coterie.cli.options import JsonOption
from coterie.cli.progress import byte_progress
from coterie.cli.terminal import Terminal
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from coterie.evaluate.demonstration import (
        Demonstration,
        Extracted,
        Happening,
        Holding,
        PartialView,
        Sample,
    )
    from coterie.evaluate.exactness import Exactness
    from coterie.evaluate.spoken import Spoken
    from coterie.extraction import Progress

_PLAIN_WIDTH = 80
_GREATEST_WIDTH = 100
_HEADINGS = {
    "extract": "1  Extract: from the checkpoint to one aligned record per expert",
    "generate": "2  Generate, with a quarter of the experts in memory",
    "prove": "3  Prove: the same bits as stock transformers",
    "speak": "4  Speak: a word heard, said, and heard again",
    "cut": "5  Cut: only 8 of the 32 experts of every layer",
}


def command(
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            file_okay=False,
            metavar="DIR",
            show_default=False,
            help="Keep the two stores, DIR/full and DIR/partial, and what was spoken, DIR/spoken. Default: a temporary "
            "folder.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Shows the bundled model at work; needs no network.

    Extracts the model in the package to a store; generates from prompts of six domains, a spoken word and a picture
    while a quarter of the experts is in memory; compares every logit with stock transformers; has a word said in
    each voice of the bundled omni model, and heard; shows what is left of the text with 8 of 32 experts. The exit
    code is 1 if a single logit differs.
    """
    import_engine()
    with ExitStack() as stack:
        stack.enter_context(quiet_terminal())
        folder = keep
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coterie-demo-")))
        result = _run(folder, None if as_json else _Screen(stack))
    if as_json:
        print_json(result)
    else:
        _print_next(result, keep)
    if not result.exactness.identical:
        print_error(f"The logits differ from stock transformers for: {', '.join(result.exactness.different)}.")
        raise typer.Exit(1)


def _run(folder: Path, screen: _Screen | None) -> Demonstration:
    from coterie.evaluate.demonstration import demonstrate

    if screen is None:
        return demonstrate(folder)
    return demonstrate(folder, tell=screen.show, progress=screen.progress)


def next_steps(keep: Path | None, sample: Path) -> list[tuple[str, str]]:
    """Commands to try after the demonstration, and what each does."""
    partial = "./bundled-8" if keep is None else shlex.quote(str(keep / "partial"))
    steps = [
        ('coterie generate bundled "春" --temperature 0.7 --top-p 0.9', "text of your own"),
        (f"coterie generate bundled --audio {shlex.quote(str(sample))}", "a spoken word"),
        (f"coterie generate bundled-omni --audio {shlex.quote(str(sample))} --speak answer.wav", "an answer in speech"),
        ("coterie chat bundled --expert-memory 25% --temperature 0.7", "turn by turn"),
    ]
    if keep is None:
        steps.append((f"coterie extract bundled {partial} --experts 0-7", "a store with some of the experts"))
    else:
        steps.append((f"coterie inspect {partial}", "what the partial store holds"))
    steps += [
        (f'coterie generate {partial} "And it came to pass" --missing mask', "and text from it"),
        ("coterie doctor", "what this machine offers for larger models"),
    ]
    return steps


class _Screen:
    """Shows each result when it comes."""

    def __init__(self, stack: ExitStack) -> None:
        self._console = _console()
        self._stack = stack
        self._bar: ExitStack | None = None
        self._advance: Callable[[int], None] | None = None
        self._done = 0

    def progress(self, progress: Progress) -> None:
        """Moves the bar of an extraction, which is gone when its result is shown."""
        if progress.stage != "extract":
            return
        if self._advance is None:
            self._bar = self._stack.enter_context(ExitStack())
            self._advance = self._bar.enter_context(byte_progress("extracting", progress.total))
            self._done = 0
        self._advance(progress.done - self._done)
        self._done = progress.done

    def show(self, happening: Happening) -> None:
        """Prints a heading or a result."""
        from coterie.evaluate import demonstration as demo
        from coterie.evaluate.exactness import Exactness
        from coterie.evaluate.spoken import Spoken

        if self._bar is not None and not isinstance(happening, demo.Stage):
            self._bar.close()
            self._bar = self._advance = None
        match happening:
            case demo.Stage():
                self._console.print()
                self._console.print(Rule(_HEADINGS[happening.name], align="left", style="cyan"))
            case demo.Extracted():
                self._extracted(happening)
            case demo.Sample():
                self._sample(happening)
            case demo.Holding():
                self._holding(happening)
            case Exactness():
                self._exactness(happening)
            case Spoken():
                self._spoken(happening)
            case demo.PartialView():
                self._partial(happening)

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style))

    def _extracted(self, store: Extracted) -> None:
        self._line(
            f"{store.experts} of {store.experts_total} experts and all that is not an expert, "
            f"{format_bytes(store.nbytes)}, in {store.seconds:.1f} s"
        )

    def _sample(self, sample: Sample) -> None:
        shown = Text.assemble((sample.prompt, "bold"), " → " if sample.domain in ("speech", "picture") else "")
        shown.append(_one_line(sample.completion.text))
        row = Table.grid(padding=(0, 2))
        row.add_column(width=9, style="cyan")
        row.add_column(overflow="fold")
        row.add_row(sample.domain, shown)
        self._console.print(row)

    def _holding(self, holding: Holding) -> None:
        resident, full = holding.resident_bytes, holding.total_expert_bytes
        self._console.print()
        self._line(
            f"In memory: {format_bytes(resident)} of {format_bytes(full)} of experts ({100 * resident / full:.0f} %), "
            f"beside {format_bytes(holding.dense_bytes)} of everything else, which is always there."
        )
        self._line(
            f"Hit rate {100 * holding.hit_rate:.1f} % (decoding {100 * holding.decode_hit_rate:.1f} %), "
            f"{format_bytes(holding.bytes_read)} read, {holding.decode_tokens_per_s:.1f} tokens per second."
        )

    def _exactness(self, exactness: Exactness) -> None:
        self._line(
            f"{exactness.sequence_logits:,} logits of {exactness.cases} sequences (text, sound and picture) and "
            f"{exactness.decoded_logits:,} logits of {exactness.decoded_tokens} greedily decoded tokens compared "
            f"with transformers' own model, all of its experts in memory."
        )
        self._line(f"Greatest difference: {exactness.max_difference:g}")
        if exactness.identical:
            self._line("Bit-identical, and the same tokens.", "bold green")
        else:
            self._line(f"DIFFERENT: {', '.join(exactness.different)}", "bold red")

    def _spoken(self, word: Spoken) -> None:
        row = Table.grid(padding=(0, 2))
        row.add_column(width=9, style="cyan")
        row.add_column(overflow="fold")
        shown = Text.assemble((word.asked, "bold"), " → ", repr(word.text), f" → {word.sound_s:.1f} s of sound → ")
        shown.append(repr(word.heard), "bold green" if word.returned else "bold red")
        row.add_row(word.voice, shown)
        self._console.print(row)

    def _partial(self, view: PartialView) -> None:
        self._extracted(view.store)
        self._line("The router picks among those that are there (mask), or the others are left out (drop):")
        for text in view.texts:
            self._console.print()
            self._line(text.prompt, "bold")
            table = Table.grid(padding=(0, 2), expand=True)
            columns = {"all experts": text.full, **text.texts}
            for _ in columns:
                table.add_column(ratio=1, overflow="fold")
            table.add_row(*(Text(name, style="cyan") for name in columns))
            table.add_row(*(Text(_one_line(value).lstrip()) for value in columns.values()))
            self._console.print(Padding(table, (0, 0, 0, 2)))
        self._console.print()
        for policy, found in view.likeness.items():
            self._line(
                f"{policy}: predicts the full model's token {100 * found.same_top:.0f} % of the time; "
                f"KL divergence {found.kl:.2f} nats per token ({found.tokens} tokens)"
            )


def _print_next(result: Demonstration, keep: Path | None) -> None:
    from coterie.evaluate.demonstration import samples_folder

    console = _console()
    console.print()
    console.print(Rule(f"Done in {result.seconds:.0f} s. Try next", align="left", style="cyan"))
    for line, what in next_steps(keep, samples_folder() / "dog.wav"):
        # Never folded: a command is there to be copied.
        console.print(Text.assemble("# ", what, style="dim"), Text(f"  {line}", style="bold"), sep="\n", soft_wrap=True)


def _console() -> Terminal:
    """The console of results, at most as wide as is comfortable to read, 80 columns in a log."""
    return Terminal(width=min(Terminal().width, _GREATEST_WIDTH) if sys.stdout.isatty() else _PLAIN_WIDTH)


def _one_line(text: str) -> str:
    """Newlines shown as a sign, control characters not at all: code and poems stay compact."""
    return "".join(c if c.isprintable() else " " for c in text.rstrip().replace("\n", " ⏎ "))

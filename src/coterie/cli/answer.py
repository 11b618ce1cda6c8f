"""How generated text and its figures are shown."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from coterie.cli.console import print_note
from coterie.cli.terminal import printable
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from coterie.engine import ModelStats
    from coterie.generation.completion import Completion


def write_text(text: str) -> None:
    """Writes generated text to stdout at once.

    In a terminal, control characters are replaced: a model must not be able to send escape sequences. So is what the
    encoding of stdout lacks.
    """
    if sys.stdout.isatty():
        text = printable(text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


class AnswerPrinter:
    """Shows an answer while it comes: what the model says on stdout, what it thinks on stderr.

    Args:
        quiet: Do not show what it thinks.
        beside: Show all of it on stderr, since stdout is wanted for its sound.
    """

    def __init__(self, *, quiet: bool = False, beside: bool = False) -> None:
        self._quiet = quiet
        self._write = _write_beside if beside else write_text
        self._thinking = False

    def text(self, piece: str) -> None:
        """Takes a piece of what the model says."""
        self._end_of_thinking()
        self._write(piece)

    def reasoning(self, piece: str) -> None:
        """Takes a piece of what it thinks."""
        if self._quiet:
            return
        if not self._thinking:
            self._thinking = True
            _write_beside("[thinking]\n")
        _write_beside(piece)

    def end(self, completion: Completion) -> None:
        """Ends the line, and says what else the answer wants."""
        self._end_of_thinking()
        self._write("\n")
        for call in completion.tool_calls:
            print_note(f"The model wants to call {call.name} with {call.arguments}")
        if completion.reasoning and not completion.text and completion.finish_reason in ("length", "context"):
            room = "-n" if completion.finish_reason == "length" else "--max-context"
            print_note(f"It ended while it was thinking: {room} gives it more room.")

    def _end_of_thinking(self) -> None:
        if self._thinking:
            self._thinking = False
            _write_beside("\n[/thinking]\n")


def _write_beside(text: str) -> None:
    """Writes to stderr at once, as it is but for what would steer a terminal."""
    encoding = sys.stderr.encoding or "utf-8"
    sys.stderr.write(printable(text).encode(encoding, "replace").decode(encoding))
    sys.stderr.flush()


def summary(completion: Completion, stats: ModelStats) -> str:
    """One line: tokens, speed, why it ended, experts in memory, hit rate."""
    reused = f" ({completion.reused_tokens} of them reused)" if completion.reused_tokens else ""
    parts = [
        f"prompt {completion.prompt_tokens} tokens{reused}, {completion.prefill_tokens_per_s:.1f}/s",
        f"{len(completion.token_ids)} new, {completion.decode_tokens_per_s:.1f}/s ({completion.finish_reason})",
        experts_line(stats),
    ]
    return " | ".join(parts)


def experts_line(stats: ModelStats) -> str:
    """Experts in memory against all of them, how many requests found theirs there, and what was done early."""
    share = 100 * stats.resident_bytes / stats.total_expert_bytes if stats.total_expert_bytes else 0.0
    line = (
        f"experts {format_bytes(stats.resident_bytes)} of {format_bytes(stats.total_expert_bytes)} in memory "
        f"({share:.0f} %), hit rate {100 * stats.total.hit_rate:.1f} %"
    )
    if stats.warmed:
        line += f", {stats.warmed_used} of {stats.warmed} warmed were used"
    if stats.total.left_out:
        line += f", {stats.total.left_out} left out ({format_bytes(stats.total.bytes_not_read)} not read)"
    if stats.fetched.experts:
        line += f", {stats.fetched.experts} fetched ({format_bytes(stats.fetched.nbytes)})"
    if read := [part for part in stats.parts.values() if part.reads]:
        nbytes, seconds = sum(part.read_nbytes for part in read), sum(part.read_s for part in read)
        line += f", {format_bytes(nbytes)} of encoders and speech read in {seconds:.1f} s"
    return line + (f", {stats.total.absent} uses of absent experts" if stats.total.absent else "")

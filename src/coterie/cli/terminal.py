"""What reaches a terminal: texts as they are, never as markup, and no characters that steer it.

Names come from files and servers of strangers. A control character among them could clear the screen, set the title
or forge lines; brackets would be rich's markup, and colons its emoji. All that commands print goes through here.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, characters that turn the direction of writing, and halves of surrogates."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """The text with a replacement character for each that could steer a terminal or cannot be written."""
    return UNPRINTABLE.sub(_REPLACEMENT, text)


class Terminal(Console):
    """A console of rich that shows texts as they are.

    Lines of prose are broken between words in a terminal, and not at all elsewhere; a word that is longer than a line,
    such as a path, stays whole.

    Args:
        stderr: Print on stderr, not on stdout.
        width: Columns; default: those of the terminal.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints sentences and figures, or anything of rich's."""
        if all(isinstance(one, str) for one in objects):
            options = {"soft_wrap": True} | options
            if self.is_terminal:
                objects = tuple(_broken_between_words(one, self.width) for one in objects)
        super().print(*objects, **options)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """Shows what is being done until the block ends."""
        return super().status(Text(status) if isinstance(status, str) else status, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text of rich's, cleaned before anything is laid out by its width."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of what is to be printed, cleaned: what was no plain text before passes here, too."""
        for segment in super().render(renderable, options):
            if segment.control or not UNPRINTABLE.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def _broken_between_words(text: str, width: int) -> str:
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) if len(line) > width else line
        for line in text.split("\n")
    )


def json_text(text: str, encoding: str | None) -> str:
    """JSON as it can be shown and written: what steers a terminal, or an encoding lacks, becomes an escape of JSON."""
    safe = UNPRINTABLE.sub(_escaped, text)
    try:
        safe.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return "".join(character if character.isascii() else _escapes(character) for character in safe)
    return safe


def _escaped(found: re.Match[str]) -> str:
    return _escapes(found[0])


def _escapes(character: str) -> str:
    encoded = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{encoded[place : place + 2].hex()}" for place in range(0, len(encoded), 2))

"""Where segments of a survey end: so that each domain has enough of them for anything to be said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from coterie.profiles.inference import MOST_BLOCKS
from coterie.profiles.recording import SEGMENT_TOKENS
from coterie.survey.material import Material


class SegmentEnds:
    """Says after each input whether the segment is to end.

    Findings rest on blocks of segments, of which 32 are best and four the least. So the material of a domain is cut
    into about 32 segments where it is too little for more of the usual size: texts by tokens, and sounds and pictures,
    which are single inputs of a few dozen tokens, by their number. A segment ends with its domain.

    Args:
        files: All that will be recorded, in order.
        limit: The most tokens of each text.
    """

    def __init__(self, files: Sequence[Material], limit: int | None) -> None:
        number = Counter(_kind(one) for one in files)
        tokens: Counter[tuple[str, str]] = Counter()
        for one in files:
            tokens[_kind(one)] += one.work if limit is None else min(one.work, limit)
        self._files_of = {kind: max(1, count // MOST_BLOCKS) for kind, count in number.items()}
        self._tokens_of = {
            kind: min(SEGMENT_TOKENS, max(1, tokens[kind] // MOST_BLOCKS)) if kind[0] == "text" else SEGMENT_TOKENS
            for kind in number
        }
        self._last = {one.name for one, after in pairwise(files) if _kind(one) != _kind(after)}
        self._files = 0

    def after(self, one: Material, tokens: int, *, finished: bool) -> bool:
        """Whether the segment ends here.

        Args:
            one: The file that has been read, or a part of it.
            tokens: In the segment.
            finished: Whether nothing is left of the file.
        """
        self._files += finished and one.kind != "text"
        return (
            tokens >= self._tokens_of[_kind(one)]
            or self._files >= self._files_of[_kind(one)]
            or (finished and one.name in self._last)
        )

    def ended(self) -> None:
        """A segment has ended."""
        self._files = 0


def _kind(one: Material) -> tuple[str, str]:
    return one.kind, one.domain

"""Shows the progress of long library calls: one bar, or occasional line, per stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from coterie.cli.console import byte_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from coterie.extraction import Progress, ProgressCallback

_LABELS = {"extract": "Extracting", "checksums": "Checking checksums", "compare": "Comparing"}


@contextmanager
def shown_progress() -> Iterator[ProgressCallback]:
    """Yields a callback that shows what it is told on stderr, until the block ends."""
    with ExitStack() as stack:
        stage: str | None = None
        shown = 0
        advance: Callable[[int], None] = lambda _nbytes: None  # noqa: E731

        def show(progress: Progress) -> None:
            nonlocal stage, shown, advance
            if progress.stage != stage:
                stack.close()
                stage, shown = progress.stage, 0
                label = _LABELS.get(progress.stage, progress.stage)
                advance = stack.enter_context(byte_progress(label, progress.total))
            advance(progress.done - shown)
            shown = progress.done

        yield show

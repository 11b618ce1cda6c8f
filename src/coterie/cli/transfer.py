"""Shows the progress of long library calls: one bar, or occasional line, per stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.cli.console import print_note
from coterie.cli.progress import byte_progress
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from coterie.extraction import Progress, ProgressCallback

_LABELS = {
    "measure": "Measuring",
    "extract": "Extracting",
    "checksums": "Checking checksums",
    "compare": "Comparing",
    "export": "Exporting",
    "upload": "Uploading",
}


@contextmanager
def shown_progress() -> Iterator[ProgressCallback]:
    """Yields a callback that shows what it is told on stderr, until the block ends."""
    with ExitStack() as stack:
        stage: str | None = None
        shown = 0
        received: int | None = None
        advance: Callable[[int], None] = lambda _nbytes: None  # noqa: E731

        def show(progress: Progress) -> None:
            nonlocal stage, shown, advance, received
            received = progress.received
            if progress.stage != stage:
                stack.close()
                stage, shown = progress.stage, 0
                label = _LABELS.get(progress.stage, progress.stage)
                addition = None if received is None else lambda: f" ({format_bytes(received or 0)} received)"
                advance = stack.enter_context(byte_progress(label, progress.total, addition=addition))
            advance(progress.done - shown)
            shown = progress.done

        yield show


@contextmanager
def resumable_progress(store: Path, *, download: bool = False) -> Iterator[ProgressCallback]:
    """As :func:`shown_progress`, for writing a store or checkpoint: who interrupts it is told what is kept.

    Args:
        store: The directory that is written.
        download: Whether what it is made from may have to be downloaded.
    """
    try:
        with shown_progress() as progress:
            yield progress
    except KeyboardInterrupt:
        kept = [f"What is finished is kept in {store}"] if store.is_dir() and any(store.iterdir()) else []
        kept += ["what was downloaded is kept in the Hub's cache"] if download else []
        if kept:
            text = " and ".join(kept)
            print_note(f"Stopped. {text[0].upper()}{text[1:]}; the same command goes on from there.")
        else:
            print_note("Stopped before anything was written.")
        raise

"""Keeps other libraries' progress bars and remarks off the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries(*, show_downloads: bool = False) -> Iterator[None]:
    """Inside, transformers shows no progress bars and logs errors only; afterwards it does as before.

    Coterie checks by itself what those remarks are about (missing weights, for one) and raises errors.

    Args:
        show_downloads: Whether bars of downloads from the Hub are shown.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    hub_disabled = are_progress_bars_disabled()
    # transformers switches the Hub's bars together with its own.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if show_downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
        if hub_disabled:
            disable_progress_bars()
        else:
            enable_progress_bars()

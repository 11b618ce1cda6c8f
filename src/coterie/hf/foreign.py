"""The one place where transformers, tokenizers and jinja meet a file of a stranger.

They raise what they like over it: their own errors of validation, ``TypeError``, ``ZeroDivisionError``, a panic of Rust
code, which is no ``Exception``. All of it becomes one error that names the file.

They also remark on rotary embeddings, with released models: that Qwen3-Omni's names keys which the checking of that
kind of embedding does not know, that Llama 4's has two equal frequencies, that Phi's should state its factor otherwise.
The models compute what they should, and nobody who runs one can do anything about it, so these lines are left out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coterie.errors import CoterieError, LoadError

_LONGEST = 600
_ROTARY = logging.getLogger("transformers.modeling_rope_utils")


@contextmanager
def foreign(
    what: str,
    path: Path,
    *,
    error: type[CoterieError] = LoadError,
    advice: str | None = "Is it of this model, and complete? Download it again, or mend what the message names.",
) -> Iterator[None]:
    """Turns whatever the block raises into an error that names the file.

    Coterie's own errors pass, as do interrupts and the end of the process.

    Args:
        what: What was made of the file, as a subject: ``"The tokenizer"``.
        path: The file or directory.
        error: The class to raise, with ``path`` as a fact and the original as ``__cause__``.
        advice: What to do about it.

    Raises:
        CoterieError: Of the class asked for.
    """
    try:
        with _without_rotary_remarks():
            yield
    except (CoterieError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as problem:
        raise error(f"{what} in {path} cannot be used: {reason_of(problem)}", advice=advice, path=path) from problem


@contextmanager
def _without_rotary_remarks() -> Iterator[None]:
    """Inside, what this thread has transformers log about rotary embeddings is left out, unless it is an error."""
    own = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != own or record.levelno >= logging.ERROR

    _ROTARY.addFilter(passes)
    try:
        yield
    finally:
        _ROTARY.removeFilter(passes)


def reason_of(problem: BaseException) -> str:
    """One line of what was raised, with its type where the text alone says nothing."""
    text = " ".join(str(problem).split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 1]}…"
    if isinstance(problem, MemoryError):
        return "it asks for more memory than there is."
    said = f"{type(problem).__name__}: {text}" if not isinstance(problem, ValueError | OSError) else text
    said = said.rstrip(": ") or type(problem).__name__
    return said if said.endswith((".", "!", "?")) else f"{said}."

"""What a plan says in words: why a model will not run, and what to type."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath

from coterie.inspection.what_fits import MemoryFit
from coterie.spec import format_bytes
from coterie.spec.footprint import Footprint

_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def why_not(fit: MemoryFit, footprint: Footprint) -> str | None:
    """Why a model will not run in a budget, part by part; None if it will."""
    if fit.enough:
        return None
    lent = max(fit.lent.values(), default=0)
    parts = (
        ("interpreter and libraries", fit.process_nbytes),
        ("everything outside experts", fit.dense_nbytes),
        (f"keys and values of {fit.context} tokens", fit.kv_nbytes),
        (f"activations of {fit.context} tokens", fit.activation_nbytes),
        ("buffers", fit.buffer_nbytes),
        ("libraries at work", fit.library_nbytes),
        ("a margin", fit.margin_nbytes),
        ("parts that only some requests need", lent),
        ("the fewest experts", footprint.least_experts),
    )
    listed = ", ".join(f"{name} {format_bytes(nbytes)}" for name, nbytes in parts if nbytes)
    return f"{listed} make {format_bytes(sum(nbytes for _, nbytes in parts))}"


def exact_size(nbytes: int) -> str:
    """A size as an option takes it, without rounding."""
    for unit, size in _UNITS:
        if nbytes % size == 0:
            return f"{nbytes // size}{unit}"
    return f"{nbytes}B"


def store_name(model: str, scheme: str) -> str:
    """A directory for a new store of a model."""
    name = PurePosixPath(model.replace("\\", "/")).name or "model"
    return f"./{name}-{scheme}"


def extract_command(
    model: str,
    store: str,
    *,
    scheme: str,
    dense_scheme: str | None,
    component: str | None,
    revision: str | None,
) -> str:
    """The command that makes a store."""
    options = {"--component": component, "--scheme": scheme, "--dense-scheme": dense_scheme, "--revision": revision}
    return _line("extract", [model, store], options)


def chat_command(model: str, options: Mapping[str, object]) -> str:
    """The command that runs a model.

    Args:
        model: What it runs.
        options: By name, such as ``--memory``; None for one that is left out.
    """
    return _line("chat", [model], options)


def _line(command: str, arguments: list[str], options: Mapping[str, object]) -> str:
    words = ["coterie", command, *arguments]
    for name, value in options.items():
        if value is not None:
            words += [name, str(value)]
    return shlex.join(words)

"""What other programs call their commands, and which of Coterie's does the same."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from coterie.errors import UsageError

_GENERATE = "Use `coterie generate MODEL PROMPT`, or `coterie chat MODEL` to talk."
_EXTRACT = "Use `coterie extract CHECKPOINT STORE`: it downloads what is needed and makes a store of it."
_STORES = "Use `coterie stores`, which lists the stores on this machine."
_REMOVE = "Use `coterie stores remove NAME`."
_INSPECT = "Use `coterie inspect MODEL`."
_PLAN = "Use `coterie plan MODEL --memory 8GiB`."
_SERVE = "Use `coterie serve MODEL`."
_NO_SERVICE = "A model is loaded as long as its command runs: `coterie serve MODEL` keeps it, and Ctrl-C ends it."
_HELP = "`coterie --help` lists the commands, `coterie COMMAND --help` explains one."
_VERSION = "Use `coterie --version`."
_CONVERT = "Use `coterie extract CHECKPOINT STORE`, and `coterie quantize MODEL STORE` for a smaller store."

_HINTS = {
    "cache": _STORES,
    "complete": _GENERATE,
    "convert": _CONVERT,
    "create": _CONVERT,
    "delete": _REMOVE,
    "download": _EXTRACT,
    "estimate": _PLAN,
    "estimate-memory": _PLAN,
    "fits": _PLAN,
    "help": _HELP,
    "info": _INSPECT,
    "list": _STORES,
    "load": _NO_SERVICE,
    "ls": _STORES,
    "perplexity": "Use `coterie evaluate MODEL --text FILE`.",
    "ps": _NO_SERVICE,
    "pull": _EXTRACT,
    "remove": _REMOVE,
    "rm": _REMOVE,
    "run": _GENERATE,
    "server": _SERVE,
    "show": _INSPECT,
    "start": _SERVE,
    "stop": _NO_SERVICE,
    "version": _VERSION,
}
"""As ollama, llama.cpp, mlx-lm, transformers and others call it → what to do here."""


def unknown_command(name: str, commands: Iterable[str]) -> UsageError:
    """The error for a command that does not exist, with what does the same or is spelt alike."""
    near = difflib.get_close_matches(name, commands, n=1, cutoff=0.6)
    hint = _HINTS.get(name.lower()) or (f"Did you mean {near[0]!r}?" if near else _HELP)
    return UsageError(f"There is no command {name!r}.", advice=hint, got=name)

"""What the text that names a model means: a path, a model of the package, a store by its name, or one of the Hub.

In this order, but for ``bundled`` and ``bundled-omni``, which mean the models in the package wherever one stands; a
directory of such a name is ``./bundled``.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from coterie.errors import CheckpointNotFoundError, UsageError
from coterie.files.home import stores_by_name
from coterie.files.joining import joined
from coterie.files.other_programs import check_form

BUNDLED = "bundled"
"""The name under which the checkpoint in the package is opened."""

BUNDLED_OMNI = "bundled-omni"
"""The name of the same with a talker and a vocoder, which lie in the package beside it."""

IN_PACKAGE = (BUNDLED, BUNDLED_OMNI)
"""The names that mean models of the package."""


def resolve_path(model: str | Path) -> str | Path:
    """Replaces ``bundled``, ``bundled-omni`` and the name of a store by the directory that is meant.

    Only a bare text is a name: ``Path("mine")`` and ``"./mine"`` are paths. Everything else is left as it is.

    Raises:
        OutputError: If ``bundled-omni`` is not put together yet, and cannot be.
    """
    if not isinstance(model, str) or not _is_bare(model):
        return model
    package = Path(__file__).parents[1]
    if model == BUNDLED:
        return package / BUNDLED
    if model == BUNDLED_OMNI:
        return joined(package / BUNDLED, package / BUNDLED_OMNI)
    # What lies here comes first, so that a new store elsewhere never changes what a command opens.
    return model if _exists(Path(model)) else stores_by_name().get(model, model)


def model_path(model: str | Path) -> Path:
    """The same as a path, the home directory of ``~`` written out."""
    return Path(resolve_path(model)).expanduser()


def check_name(model: str | Path) -> None:
    """Finds out, before anything is opened, that this names no model, and says what was probably meant.

    Raises:
        CheckpointNotFoundError: If it is neither a directory that exists, nor a store's name, nor of the form of a Hub
            id.
        UsageError: If it is no name at all, or an address.
        UnsupportedError: If it is a file in a format that is not read.
    """
    path = resolve_path(model)
    check_form(path)
    if not _exists(Path(path)) and not is_hub_id(str(model)):
        raise unknown_model(str(model))


def check_new_name(store: str | Path) -> None:
    """Refuses to make a model under a name that commands would not open it by.

    Raises:
        UsageError: If it is ``bundled`` or ``bundled-omni`` in the current directory.
    """
    name = next((name for name in IN_PACKAGE if Path(store) == Path(name)), None)
    if name is not None:
        raise UsageError(
            f"A model in ./{name} could not be opened by this name, which means a model in the package.",
            advice=f"Choose another name, such as ./{name}-small.",
            path=Path(store),
        )


def is_hub_id(model: str) -> bool:
    """Whether a text that is no path has the form of a repository of the Hub, such as ``Qwen/Qwen3-30B-A3B``."""
    return not model.startswith((".", "/", "~")) and model.count("/") == 1


def unknown_model(model: str) -> CheckpointNotFoundError:
    """The error for a text that names nothing; it has the nearest name that does."""
    stores = stores_by_name() if _is_bare(model) else {}
    store = ", and no store has this name" if stores else ""
    near = _nearest(model, stores)
    hint = f"Did you mean {near!r}? " if near else ""
    if " " in model.strip() and not near:
        hint = "MODEL comes first, and what it is to read after it. "
    return CheckpointNotFoundError(
        f"There is no directory {model!r}{store}.",
        advice=f"{hint}Pass a directory, the name of a store in `coterie stores`, or a Hub id like "
        f"'Qwen/Qwen3-30B-A3B'.",
        got=model,
    )


def _is_bare(model: str) -> bool:
    """Whether a text is a name, and not a path or a repository."""
    return model not in ("", ".", "..") and not model.startswith("~") and not {"/", "\\"} & set(model)


def _exists(path: Path) -> bool:
    """Whether something lies there; not so if it cannot, as where a name is too long or there is no such home."""
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _nearest(model: str, stores: dict[str, Path]) -> str | None:
    """What a mistyped text probably means: a directory beside the one it names, or a name."""
    try:
        path = Path(model).expanduser()
        beside = {
            entry.name: str(Path(model).with_name(entry.name)) for entry in path.parent.iterdir() if entry.is_dir()
        }
    except (OSError, RuntimeError, ValueError):
        path, beside = Path(model), {}
    if model.startswith("./"):
        beside = {name: f"./{text}" for name, text in beside.items()}
    names = beside | ({name: name for name in (*stores, *IN_PACKAGE)} if _is_bare(model) else {})
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return names[near[0]] if near else None

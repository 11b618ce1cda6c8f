"""Is it a store or a checkpoint? Both can be verified and inspected."""

from __future__ import annotations

from pathlib import Path

from coterie.files.naming import BUNDLED, resolve_path
from coterie.store import Store, is_store, is_unfinished


def store_path(model: str | Path) -> Path | None:
    """The directory of the store that ``model`` names, or None if it names a checkpoint.

    Raises:
        StoreNotFoundError: If it is a directory with an unfinished store, or with neither.
    """
    if model == BUNDLED:
        return None
    path = Path(resolve_path(model)).expanduser()
    if is_store(path):
        return path
    if path.is_dir() and (is_unfinished(path) or not (path / "config.json").exists()):
        Store.open(path)  # says what the directory is instead
    return None

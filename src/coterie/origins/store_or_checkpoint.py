"""Is it a store or a checkpoint? Both can be verified and inspected."""

from __future__ import annotations

from pathlib import Path

from coterie.errors import UsageError
from coterie.files.naming import IN_PACKAGE, check_name, model_path
from coterie.files.other_programs import no_model
from coterie.store import Store, is_store, is_unfinished


def store_path(model: str | Path) -> Path | None:
    """The directory of the store that ``model`` names, or None if it names a checkpoint.

    Raises:
        StoreNotFoundError: If it is a directory with an unfinished store, or with neither.
        UsageError, UnsupportedError, CheckpointNotFoundError: If it is no name of a model, or of one in another format.
    """
    if model in IN_PACKAGE:
        return None
    check_name(model)
    path = model_path(model)
    if is_store(path):
        return path
    if path.is_dir():
        if is_unfinished(path):
            Store.open(path)  # says so
        if not (path / "config.json").exists():
            raise no_model(path)
    return None


def need_checkpoint(checkpoint: str | Path, advice: str) -> None:
    """Refuses a store where a checkpoint is needed.

    Args:
        checkpoint: Directory, name or Hub id.
        advice: What to do instead.

    Raises:
        UsageError: If it is a store.
    """
    if is_store(model_path(checkpoint)):
        raise UsageError(f"{checkpoint} is a store, and a checkpoint is needed here.", advice=advice, path=checkpoint)

"""The folder in which a user's stores have names, and what the package makes lies beside them."""

from __future__ import annotations

import os
from pathlib import Path

from coterie.errors import UsageError

HOME_VARIABLE = "COTERIE_HOME"


def stores_folder() -> Path:
    """Where stores lie unless said otherwise: ``$COTERIE_HOME/stores``, else the user's XDG data folder.

    Raises:
        UsageError: If this user has no home directory and no variable names another.
    """
    return _home("folder of stores") / "stores"


def joined_folder() -> Path:
    """Where models lie that were put together of parts of the package: ``joined`` beside :func:`stores_folder`.

    Raises:
        UsageError: As :func:`stores_folder`.
    """
    return _home("folder for the models of the package") / "joined"


def _home(what: str) -> Path:
    home = os.environ.get(HOME_VARIABLE)
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    try:
        if home:
            return Path(home).expanduser()
        # The XDG specification says to ignore a relative path, which an empty one is too.
        base = data if data.is_absolute() else Path.home() / ".local" / "share"
    except RuntimeError as error:
        raise UsageError(
            f"This user has no home directory, so there is no {what}.", advice=f"Set {HOME_VARIABLE}."
        ) from error
    return base / "coterie"


def stores_by_name() -> dict[str, Path]:
    """The directories of that folder, by name; none where it cannot be listed."""
    try:
        return {path.name: path for path in sorted(stores_folder().iterdir()) if path.is_dir()}
    except (OSError, UsageError):
        return {}

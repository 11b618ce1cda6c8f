"""Folders of a user: the one in which stores have names, and the one of what can be made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from coterie.errors import UsageError

HOME_VARIABLE = "COTERIE_HOME"
CACHE_VARIABLE = "XDG_CACHE_HOME"


def stores_folder() -> Path:
    """Where stores lie unless said otherwise: ``$COTERIE_HOME/stores``, else the user's XDG data folder.

    Raises:
        UsageError: If this user has no home directory and no variable names another.
    """
    home = os.environ.get(HOME_VARIABLE)
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    try:
        if home:
            return Path(home).expanduser() / "stores"
        # The XDG specification says to ignore a relative path, which an empty one is too.
        base = data if data.is_absolute() else Path.home() / ".local" / "share"
    except RuntimeError as error:
        raise UsageError(
            "This user has no home directory, so there is no folder of stores.", advice=f"Set {HOME_VARIABLE}."
        ) from error
    return base / "coterie" / "stores"


def stores_by_name() -> dict[str, Path]:
    """The directories of that folder, by name; none where it cannot be listed."""
    try:
        return {path.name: path for path in sorted(stores_folder().iterdir()) if path.is_dir()}
    except (OSError, UsageError):
        return {}


def cache_folder() -> Path:
    """Where lies what can be made again: ``coterie`` in ``$XDG_CACHE_HOME``, else in the system's folder for that.

    Of a user without a home directory it is below a device, where nothing can be read or written.
    """
    stated = os.environ.get(CACHE_VARIABLE, "")
    if Path(stated).is_absolute():
        base = Path(stated)
    elif sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        base = Path(os.environ["LOCALAPPDATA"])
    else:
        try:
            base = Path("~/.cache").expanduser()
        except RuntimeError:
            base = Path(os.devnull)
    return base / "coterie"

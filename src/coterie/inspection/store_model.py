"""Is what a store holds the model that its configuration describes? What opening it would refuse is found here, too."""

from __future__ import annotations

import warnings
from pathlib import Path

from coterie.errors import CoterieError, LoadError
from coterie.origins import StoreOrigin
from coterie.store import Problem


def model_problems(path: Path) -> list[Problem]:
    """Tensors outside experts that the model lacks, has no place for, or needs in another shape.

    A model that this release of transformers does not know is no problem of the store: a warning says that nothing was
    compared.

    Args:
        path: A store whose files are as its manifest says.
    """
    try:
        StoreOrigin.open(path)
    except LoadError as error:
        if error.__cause__ is None:
            found = error.facts.get("path", path)
            file = "" if found == path else Path(str(found)).name
            place = str(error.facts.get("tensor", "the model"))
            return [Problem(kind="malformed", file=file, place=place, rule="", message=error.message)]
        _warn(error)
    except CoterieError as error:
        _warn(error)
    return []


def _warn(error: CoterieError) -> None:
    warnings.warn(f"Whether the store holds the whole model was not checked: {error.message}", stacklevel=3)

"""The packages of the extras in ``pyproject.toml``: imported when they are needed, and how they are installed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from coterie.errors import MissingPackageError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "scipy": "SciPy", "matplotlib": "Matplotlib"}


def optional_package(module: str, purpose: str, *, extra: str) -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: Its name, such as ``"sklearn.cluster"``.
        purpose: What needs it, as the beginning of a sentence: ``"Clustering router rows needs"``.
        extra: The extra that the package belongs to.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(
            f"{purpose} {_DISTRIBUTIONS.get(package, package)}, which is not there ({error}).",
            advice=install_advice(extra),
            package=package,
        ) from error


def install_advice(extra: str) -> str:
    """The sentence that says how to install what an extra of the package stands for.

    It names the packages themselves: they can be had wherever Coterie came from, a clone or a wheel.

    Args:
        extra: Its name in ``pyproject.toml``, such as ``analysis``.
    """
    # Here, not above: they take longer to import than all else that a size or a key needs.
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in requires("coterie") or ()]
    chosen = [one for one in needed if one.marker is not None and one.marker.evaluate({"extra": extra})]
    return f"Install it: pip install {' '.join(_quoted(one) for one in chosen)}."


def _quoted(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"'{requirement.name}{extras}{requirement.specifier}'"

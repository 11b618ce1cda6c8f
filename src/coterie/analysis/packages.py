"""The optional packages of the extra `analysis`, imported when they are needed and never before."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from coterie.errors import MissingPackageError
from coterie.spec import install_advice


def optional_package(module: str, purpose: str) -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: Its name, such as ``"sklearn.cluster"``.
        purpose: What needs it, as the beginning of a sentence: ``"Clustering router rows needs"``.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(
            f"{purpose} {_DISTRIBUTIONS.get(package, package)}, which is not there ({error}).",
            advice=install_advice("analysis"),
            package=package,
        ) from error


_DISTRIBUTIONS = {"sklearn": "scikit-learn", "scipy": "SciPy", "matplotlib": "Matplotlib"}

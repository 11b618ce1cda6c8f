"""Which releases of transformers Coterie was tested with, and what is said about one that is newer."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata

from packaging.version import InvalidVersion, Version

from coterie.errors import ContractError

TESTED = ("5.7.0", "5.17.0", "5.23.0", "5.24.0")
"""The releases that all tests of models have run with, oldest first.

Continuous integration runs those of the three lock files. Others were in ``requirements.lock`` once, and ran everything
then: they are supported as the releases around them are, but nothing runs them any more.
"""


def installed() -> str:
    """The release of transformers that is installed."""
    try:
        return metadata.version("transformers")
    except metadata.PackageNotFoundError:  # run from its sources
        return str(import_module("transformers").__version__)


def newest_tested() -> Version:
    """The newest release that the tests have run with."""
    return max(map(Version, TESTED))


def newer_than_tested(release: str) -> bool:
    """Whether a release came after all that the tests have run with; a development version of such a one did."""
    try:
        return Version(release) > newest_tested()
    except InvalidVersion:  # built from sources, under a name of its own
        return True


def newer_note(release: str) -> str:
    """What a user of a release that is newer than any tested has to know."""
    return (
        f"transformers {release} is newer than any release that Coterie was tested with ({TESTED[0]} to {TESTED[-1]}). "
        "What memory and exactness rest on is checked while it runs. `coterie doctor --transformers` checks all of it."
    )


@functools.cache
def warn_if_newer() -> None:
    """Warns of a release that is newer than any tested, once in a process."""
    release = installed()
    if newer_than_tested(release):
        warnings.warn(newer_note(release), stacklevel=3)


@contextmanager
def moved(follower: str) -> Iterator[None]:
    """Around imports from within transformers: what is not there any more is an error that says so.

    Args:
        follower: The module of ``coterie`` that has to follow.

    Raises:
        ContractError: If transformers lacks a module or a name.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "transformers":
            raise
        raise broken(follower, f"{follower} finds no more what it needs in transformers: {error}.") from error


def broken(contract: str, what: str) -> ContractError:
    """The error for something that this release does otherwise.

    Args:
        contract: Name of what Coterie relies on.
        what: What is otherwise, as a sentence.
    """
    release = installed()
    if newer_than_tested(release):
        advice = f"transformers {release} is newer than any release it was tested with: install {TESTED[-1]}."
    else:
        advice = f"Please report it, with what was called (transformers {release})."
    return ContractError(what, advice=advice, release=release, contract=contract)

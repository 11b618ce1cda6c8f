"""Opens a model for a command: quietly, with warnings as one-line remarks, closed at the end."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from functools import wraps
from importlib import import_module
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from coterie.cli.console import notes, print_note, print_warning
from coterie.cli.options import OPENING_OPTIONS, EvictionOption
from coterie.cluster.spreading import check_spreading
from coterie.cluster.workers import RemoteModel
from coterie.errors import UsageError
from coterie.spec import DEFAULT_WARM
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from coterie.generation.opened import OpenModel


_NOT_GIVEN = None
"""Default of ``--warm`` on the command line: what is said about warming needs a profile."""
_OFF = "off"
"""The setting of ``--warm`` by which nothing is read early."""


def opens_model(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of opening a model, in the place of its parameter ``opening``.

    What the options say is checked before the command runs, without importing torch, which takes seconds.

    Args:
        without: Names of those that the command does not have.
    """
    defaults = {field.name: field.default for field in fields(Opening)} | {"warm": _NOT_GIVEN}
    names = [name for name in OPENING_OPTIONS if name not in without]
    unknown = set(without) - set(OPENING_OPTIONS)
    assert not unknown, unknown

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        group = [
            Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=defaults[name],
                annotation=EvictionOption if name == "eviction" and "profile" in without else OPENING_OPTIONS[name],
            )
            for name in names
        ]
        own = signature(command, eval_str=True)
        parameters = [one for p in own.parameters.values() for one in (group if p.name == "opening" else [p])]

        @wraps(command)
        def run(**values: Any) -> None:
            opening = _opening({name: values.pop(name) for name in names})
            command(opening=opening, **values)

        # What Typer reads in the place of the command's own.
        run.__dict__["__signature__"] = own.replace(parameters=parameters)
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _opening(values: dict[str, Any]) -> Opening:
    """What the options say.

    Raises:
        UsageError: If an option has no such value, or needs another one.
        ProfileError: If there is no such profile.
    """
    from coterie.eviction import check_policy

    if values.get("profile") is None:
        for name in ("warm", "pin"):
            if values.get(name) is not None:
                raise UsageError(f"--{name} needs a profile, which was not given.", advice="Add --profile PROFILE.")
    if "warm" in values:
        values["warm"] = {_NOT_GIVEN: DEFAULT_WARM, _OFF: None}.get(values["warm"], values["warm"])
    opening = Opening(**values)
    check_policy(opening.eviction, profile=opening.profile is not None)
    opening.check()
    if opening.profile is not None:
        from coterie.profiles.database import check_file
        from coterie.profiles.location import locate

        check_file(locate(opening.profile), create=False)
    return opening


def import_engine(*, quiet: bool = False) -> None:
    """Imports torch and transformers, which takes seconds, while a terminal shows that something is going on."""
    with nullcontext() if quiet else notes().status("starting"):
        import_module("coterie.engine.opening")


@contextmanager
def quiet_terminal(*, quiet: bool = False) -> Iterator[None]:
    """Keeps other libraries' noise off the terminal; Coterie's own warnings are printed as remarks.

    Args:
        quiet: Leave these out too.
    """
    from coterie.engine.quiet import quiet_libraries

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if not quiet:
            print_warning(str(message))

    with quiet_libraries(show_downloads=sys.stderr.isatty() and not quiet), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"coterie\.")
        warnings.showwarning = show
        yield


def remote_model(path: str, opening: Opening, ray: str | None) -> RemoteModel | None:
    """The model of a command that was given ``--ray``; None for one that opens it here. Imports neither torch nor Ray.

    Raises:
        MissingPackageError: If Ray is not installed.
        UsageError: If it is not said what each process may take.
    """
    if ray is None:
        return None
    check_spreading(opening)
    return RemoteModel(path=path, opening=opening, address=ray)


@contextmanager
def open_model(path: str, opening: Opening, *, whole: bool = False, quiet: bool = False) -> Iterator[OpenModel]:
    """Opens a model inside :func:`quiet_terminal`; frees it at the end. Imports torch.

    Args:
        path: The model.
        opening: How it is opened.
        whole: Open a whole omni model even if no component is named, not only its thinker.
        quiet: Say nothing about it.

    Raises:
        CoterieError: As :func:`coterie.load`.
    """
    import_engine(quiet=quiet)
    from coterie.generation.opened import OpenModel

    with quiet_terminal(quiet=quiet):
        with nullcontext() if quiet else notes().status(f"opening {path}"):
            opened = OpenModel.open(path, opening, whole=whole)
        try:
            if not quiet and opening.max_context is None:
                _tell_context(opened.model)
            yield opened
        finally:
            opened.model.coterie.close()


def _tell_context(model: Any) -> None:
    """Says how long texts may be, where the model was made for longer ones: memory is set aside for the former."""
    from coterie.hf.context import model_context

    most, longest = model.coterie.max_context, model_context(model.config)
    if most is not None and longest is not None and longest > most:
        print_note(f"context {most} of {longest} tokens (--max-context)")

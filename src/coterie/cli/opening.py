"""Opens a model for a command: quietly, with warnings as one-line remarks, closed at the end."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from coterie.cli.console import notes, print_note, print_warning
from coterie.cli.options import MissingPolicy
from coterie.errors import UsageError
from coterie.spec import DEFAULT_POLICY, DEFAULT_PREFETCH, Prefetch, parse_bytes, share_nbytes

if TYPE_CHECKING:
    from coterie.engine.opened import OpenModel


_AUTO, _OFF = "auto", "off"
"""Settings of ``--warm`` that are no domains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOptions:
    """How to open a model; the fields are the options of the same names."""

    memory: str | None = None
    expert_memory: str | None = None
    component: str | None = None
    missing: MissingPolicy | None = None
    source: str | None = None
    eviction: str = DEFAULT_POLICY
    prefetch: Prefetch = DEFAULT_PREFETCH
    profile: str | None = None
    warm: str | None = None
    pin: str | None = None
    experts_per_token: int | None = None
    max_context: int | None = None
    verify_reads: bool = False
    revision: str | None = None
    offline: bool = False
    threads: int | None = None
    whole: bool = False
    """Open a whole omni model even if no component is named, not only its thinker."""

    def check(self) -> None:
        """Refuses what cannot be, without importing torch, which takes seconds.

        Raises:
            UsageError: If an option has no such value, or needs another one.
            ProfileError: If there is no such profile.
        """
        from coterie.eviction import check_policy

        check_policy(self.eviction, profile=self.profile is not None)
        if self.memory is not None:
            parse_bytes(self.memory, what="memory")
        for name, size in (("expert_memory", self.expert_memory), ("pin", self.pin)):
            if size is not None:
                share_nbytes(size, 1, name)
        if self.source is not None and self.missing != "fetch":
            raise UsageError(
                f"--source {self.source} says where absent experts are fetched from, but nothing is to be fetched.",
                advice="Add --missing fetch, or leave --source out.",
            )
        if self.profile is not None:
            from coterie.profiles.database import check_file
            from coterie.profiles.location import locate

            check_file(locate(self.profile), create=False)
        else:
            for option, value in (("--warm", self.warm), ("--pin", self.pin)):
                if value is not None:
                    raise UsageError(f"{option} needs a profile, which was not given.", advice="Add --profile PROFILE.")


def import_engine(*, quiet: bool = False) -> None:
    """Imports torch and transformers, which takes seconds, while a terminal shows that something is going on."""
    with nullcontext() if quiet else notes().status("starting"):
        import_module("coterie.engine.loader")


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


@contextmanager
def open_model(path: str, options: OpenOptions, *, quiet: bool = False) -> Iterator[OpenModel]:
    """Opens a model inside :func:`quiet_terminal`; frees it at the end. Imports torch after looking at the options.

    Raises:
        CoterieError: As :meth:`OpenOptions.check` and :func:`coterie.load`.
    """
    options.check()
    import_engine(quiet=quiet)
    from coterie.engine import load
    from coterie.engine.opened import OpenModel
    from coterie.engine.source import text_component

    with quiet_terminal(quiet=quiet):
        with nullcontext() if quiet else notes().status(f"opening {path}"):
            component = options.component
            if component is None and not options.whole:
                component = text_component(path, revision=options.revision, offline=options.offline)
            model = load(
                path,
                memory=options.memory,
                expert_memory=options.expert_memory,
                component=component,
                missing=options.missing,
                source=options.source,
                eviction=options.eviction,
                prefetch=options.prefetch,
                profile=options.profile,
                warm=None if options.warm == _OFF else options.warm or _AUTO,
                pin=options.pin,
                experts_per_token=options.experts_per_token,
                max_context=options.max_context,
                verify_reads=options.verify_reads,
                revision=options.revision,
                offline=options.offline,
                threads=options.threads,
            )
        if not quiet and options.max_context is None:
            _tell_context(model)
        try:
            yield OpenModel.of(model)
        finally:
            model.coterie.close()


def _tell_context(model: Any) -> None:
    """Says how long texts may be, where the model was made for longer ones: memory is set aside for the former."""
    from coterie.hf.context import model_context

    most, longest = model.coterie.max_context, model_context(model.config)
    if most is not None and longest is not None and longest > most:
        print_note(f"context {most} of {longest} tokens (--max-context)")

"""The command line: parses, calls the library, prints. Nothing else in Coterie prints.

Exit codes: 0 success, 1 an error (or a negative answer, such as `verify` finding damage), 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from coterie.cli.commands import CoterieGroup
from coterie.cli.console import library_remarks, print_error, print_note
from coterie.cli.interrupts import EXIT_INTERRUPTED
from coterie.cli.streams import STDOUT, usable_streams
from coterie.errors import CoterieError, UsageError

EXIT_ERROR = 1
EXIT_USAGE = 2
_LONGEST_SURPRISE = 300
"""Characters of an error that nobody expected which are shown."""


@dataclass(slots=True, kw_only=True)
class Session:
    """What the root command learns and the end of the program needs to know."""

    debug: bool = False


def _show_version(wanted: bool) -> None:
    if wanted:
        from coterie import __version__

        typer.echo(f"coterie {__version__}")
        raise typer.Exit


app = typer.Typer(cls=CoterieGroup, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; so does COTERIE_DEBUG=1.")
    ] = False,
) -> None:
    """Run Mixture-of-Experts models whose experts do not fit in memory, exactly, under a byte budget."""
    context.obj.debug |= debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code.

    Args:
        arguments: What follows the program's name; taken from ``sys.argv`` if None.
    """
    session = Session(debug=bool(os.environ.get("COTERIE_DEBUG")))
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with usable_streams():
            code = _run(given, session)
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone, and wants no message.
        return EXIT_ERROR
    except BaseException as error:
        # Panics of Rust libraries are no Exception.
        if session.debug:
            traceback.print_exc()
        print_error(_explained(error))
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_ERROR
    if code == EXIT_INTERRUPTED:
        print_note("Interrupted")
    return code


def _explained(error: BaseException) -> str:
    """What to tell of an error, whatever it is."""
    if isinstance(error, CoterieError):
        return str(error)
    if isinstance(error, OSError) and error.filename == STDOUT:
        return f"Standard output cannot be written: {error.strerror}."
    if isinstance(error, PermissionError):
        # Whichever step met it: what the user needs is the path.
        return f"{error.filename}: {error.strerror}. Allow this user to use it, or choose another path."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, MemoryError):
        return "There is not enough memory. Close other programs, or give a smaller --memory."
    said = " ".join(str(error).split())
    what = type(error).__name__ + (f": {said[:_LONGEST_SURPRISE]}" if said else "")
    return f"Unexpected error: {what.rstrip('.')}. This is a bug in Coterie; `coterie --debug …` shows the traceback."


def _run(arguments: list[str], session: Session) -> int:
    """Runs the command; turns the exit that Typer asks for into a number."""
    try:
        with library_remarks():
            typer.main.get_command(app).main(arguments, prog_name="coterie", obj=session)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0

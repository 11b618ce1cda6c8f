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
from coterie.errors import CoterieError, UsageError

EXIT_ERROR = 1
EXIT_USAGE = 2


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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Run Mixture-of-Experts models whose experts do not fit in memory, exactly, under a byte budget."""
    context.obj.debug = debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code.

    Args:
        arguments: What follows the program's name; taken from ``sys.argv`` if None.
    """
    session = Session()
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = _run(given, session)
        sys.stdout.flush()
    except CoterieError as error:
        if session.debug:
            traceback.print_exc()
        print_error(str(error))
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_ERROR
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except PermissionError as error:
        # Whichever step met it: what the user needs is the path.
        if session.debug:
            traceback.print_exc()
        print_error(f"{error.filename}: {error.strerror}. Allow this user to use it, or choose another path.")
        return EXIT_ERROR
    except BrokenPipeError:
        # Whoever read our output has gone. The interpreter flushes stdout once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    if code == EXIT_INTERRUPTED:
        print_note("Interrupted")
    return code


def _run(arguments: list[str], session: Session) -> int:
    """Runs the command; turns the exit that Typer asks for into a number."""
    try:
        with library_remarks():
            typer.main.get_command(app).main(arguments, prog_name="coterie", obj=session)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0

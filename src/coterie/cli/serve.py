"""`coterie serve`: a model over HTTP, for clients of OpenAI and Anthropic."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli import options as shared
from coterie.cli.console import print_note
from coterie.cli.interrupts import EXIT_INTERRUPTED
from coterie.cli.opening import import_engine, open_model, opens_model
from coterie.errors import MissingPackageError, UsageError
from coterie.spec import install_advice, parse_bytes
from coterie.spec.opening import Opening

_PACKAGES = ("pydantic", "prometheus_client", "starlette", "uvicorn")


@opens_model()
def command(
    model: shared.ModelArgument,
    *,
    opening: Opening,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen at; one that others reach needs a key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port to listen at; 0 for any that is free.")
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            dir_okay=False,
            metavar="FILE",
            show_default=False,
            help="A file with the keys that requests must have one of, each on a line.",
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            "--alias",
            metavar="NAME",
            show_default=False,
            help="Another name that requests may call the model; may be given several times. The first is its name in "
            "answers.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            show_default=False,
            help="Also answer requests for this name, such as that of a proxy before it. May be given several times.",
        ),
    ] = None,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, max=64, metavar="N", help="Requests that are served at once.")
    ] = 4,
    queue: Annotated[
        int, typer.Option("--queue", min=0, max=10_000, metavar="N", help="Requests that may wait for their turn.")
    ] = 16,
    queue_timeout: Annotated[
        float,
        typer.Option(
            "--queue-timeout", min=1, metavar="SECONDS", help="Give up a request that has waited for so long."
        ),
    ] = 300.0,
    prefix_memory: Annotated[
        str | None,
        typer.Option(
            "--prefix-memory",
            metavar="SIZE",
            show_default=False,
            help="How much of the experts' memory the beginnings of prompts may take, to be computed once; 0 for what "
            "requests leave of the context's. Default: a sixteenth.",
        ),
    ] = None,
    shared_prefixes: Annotated[
        bool,
        typer.Option(
            "--shared-prefixes",
            help="Also between requests with different keys. How fast an answer begins then tells what others asked.",
        ),
    ] = False,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0, metavar="SECONDS", help="At the end, let requests finish for so long."),
    ] = 30.0,
) -> None:
    """Serves a model over HTTP, in the shapes that clients of OpenAI and Anthropic know.

    Several requests are served at once; others wait. What a request asks for that is not supported is refused by name.
    Nothing that a client names is fetched or opened; what it asks is not logged. The log on stderr is a line of JSON
    for each request.

    Ctrl-C or SIGTERM ends it: nothing new is taken on, and what runs is finished. A second one cuts it.
    """
    _check_packages()
    from coterie.server.gate import is_local
    from coterie.server.keys import Keys

    keys = None if api_key_file is None else Keys.read(api_key_file)
    if keys is None and not is_local(host):
        raise UsageError(f"Others can reach {host}, and there is no key.", advice="Add --api-key-file FILE.", host=host)
    prefix_nbytes = None
    if prefix_memory is not None:
        prefix_nbytes = 0 if prefix_memory.strip() == "0" else parse_bytes(prefix_memory, what="prefix memory")
    from coterie.server.running import listening_socket, serve

    # Before the model, which takes its time: an address that is taken is told at once.
    with closing(listening_socket(host, port)) as address, _log_lines():
        import_engine()
        # Before the model, too: what all this takes is part of the budget.
        from coterie.generation.engine import Engine
        from coterie.server.app import make_app
        from coterie.server.gate import Hosts
        from coterie.server.meters import Meters

        with open_model(model, opening) as opened:
            names = list(dict.fromkeys([*(alias or ()), opened.runtime.source.name]))
            meters = Meters()
            engine = Engine(
                opened,
                parallel=parallel,
                most_waiting=queue,
                longest_wait_s=queue_timeout,
                prefix_memory=prefix_nbytes,
                watcher=meters,
            )
            meters.watch(engine)
            app = make_app(
                engine,
                meters,
                names=names,
                hosts=Hosts(host, allow_host or ()),
                keys=keys,
                shared_prefixes=shared_prefixes,
            )

            def say() -> None:
                name = f"[{host}]" if ":" in host else host
                print_note(f"{names[0]} at http://{name}:{address.getsockname()[1]}/v1. Ctrl-C ends it.")

            interrupted = serve(app, engine, address, drain_s=drain, on_ready=say)
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def _check_packages() -> None:
    """What is missing is told at once, and how to get all of it.

    Raises:
        MissingPackageError: If a package is.
    """
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise MissingPackageError(
            f"Serving needs {missing[0]}, which is not installed.", advice=install_advice("serve"), package=missing[0]
        )


@contextmanager
def _log_lines() -> Iterator[None]:
    """Inside, the server's log goes to stderr."""
    from coterie.server.logs import JsonLines

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logs = [logging.getLogger(name) for name in ("coterie.server", "coterie.engine")]
    for log in logs:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    try:
        yield
    finally:
        for log in logs:
            log.removeHandler(handler)
            log.propagate = True

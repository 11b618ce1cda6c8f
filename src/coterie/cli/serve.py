"""`coterie serve`: a model over HTTP, for clients of OpenAI and Anthropic."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli import options as shared
from coterie.cli.console import notes, print_note
from coterie.cli.generation_options import DomainOption, ProfileFileOption, check_domain
from coterie.cli.interrupts import EXIT_INTERRUPTED
from coterie.cli.opening import import_engine, open_model, opens_model
from coterie.cluster.connection import check_ray
from coterie.errors import MissingPackageError, UsageError
from coterie.spec import (
    DEFAULT_BATCHING,
    DEFAULT_PARALLEL,
    PREFIX_DIR_NBYTES,
    Batching,
    install_advice,
    parse_bytes,
)
from coterie.spec.opening import Opening, check_recording

if TYPE_CHECKING:
    from coterie.generation.opened import OpenModel
    from coterie.server.tls import Tls

_PACKAGES = ("llguidance", "pydantic", "prometheus_client", "python_multipart", "starlette", "uvicorn")


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
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="ORIGIN",
            show_default=False,
            help="Let web pages of this origin ask, such as https://chat.example.org. May be given several times.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert",
            dir_okay=False,
            metavar="FILE",
            show_default=False,
            help="Encrypt, with this certificate and those that it was signed with, in PEM.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            "--tls-key",
            dir_okay=False,
            metavar="FILE",
            show_default=False,
            help="The certificate's private key, in PEM.",
        ),
    ] = None,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, max=64, metavar="N", help="Requests that are served at once.")
    ] = DEFAULT_PARALLEL,
    batching: Annotated[
        Batching,
        typer.Option(
            "--batching",
            help="exact: every answer is the one that it would be alone. fast: who is beside it may change the last "
            "bits of its logits; then most models that take turns otherwise compute several answers in one pass.",
        ),
    ] = DEFAULT_BATCHING,
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
    prefix_dir: Annotated[
        Path | None,
        typer.Option(
            "--prefix-dir",
            file_okay=False,
            metavar="DIR",
            show_default=False,
            help="Also keep them in this directory, for the time after a restart. It must be open to you alone.",
        ),
    ] = None,
    prefix_dir_limit: Annotated[
        str | None,
        typer.Option(
            "--prefix-dir-limit",
            metavar="SIZE",
            show_default=False,
            help="How large that directory may become. Default: 10GiB.",
        ),
    ] = None,
    shared_prefixes: Annotated[
        bool,
        typer.Option(
            "--shared-prefixes",
            help="Also between requests with different keys. How fast an answer begins then tells what others asked.",
        ),
    ] = False,
    speech: Annotated[
        bool,
        typer.Option(
            "--speech",
            help="Also answer in speech: open the whole of an omni model, not its thinker alone. That takes memory for "
            "its talker and vocoder.",
        ),
    ] = False,
    record_profile: ProfileFileOption = None,
    domain: DomainOption = None,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0, metavar="SECONDS", help="At the end, let requests finish for so long."),
    ] = 30.0,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            min=1,
            max=1000,
            metavar="N",
            show_default=False,
            help="Serve so many copies of the model, each in a process with --memory of its own. Needs --ray.",
        ),
    ] = None,
    ray: shared.RayOption = None,
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

    _check_replicas(replicas, ray, opening, batching)
    if speech and opening.component is not None:
        raise UsageError(
            f"--speech takes the whole model, and --component opens its {opening.component} alone.",
            advice="Leave one of them out.",
        )
    checked_domain = check_domain(domain, record_profile)
    if record_profile is not None:
        check_recording(opening.drop_cold, "profile")
    if record_profile is not None and ray is not None:
        raise UsageError("Replicas record no profile.", advice="Record it with one server, without --ray.")
    keys = None if api_key_file is None else Keys.read(api_key_file)
    if keys is None and not is_local(host):
        raise UsageError(f"Others can reach {host}, and there is no key.", advice="Add --api-key-file FILE.", host=host)
    prefix_nbytes = None
    if prefix_memory is not None:
        prefix_nbytes = 0 if prefix_memory.strip() == "0" else parse_bytes(prefix_memory, what="prefix memory")
    dir_nbytes = _dir_limit(prefix_dir, prefix_dir_limit)
    from coterie.server.origins import Origins
    from coterie.server.running import listening_socket, serve

    origins, tls = Origins(allow_origin or ()), _tls(tls_cert, tls_key)

    # Before the model, which takes its time: an address that is taken is told at once.
    with closing(listening_socket(host, port)) as address, _log_lines():
        import_engine()
        # Before the model, too: what all this takes is part of the budget.
        from coterie.generation.prefix_folder import check_folder
        from coterie.server.gate import Hosts

        hosts = Hosts(host, allow_host or ())
        if prefix_dir is not None and ray is None:
            check_folder(prefix_dir)

        def say(name: str, how: str = "") -> None:
            at = f"[{host}]" if ":" in host else host
            where = f"{'http' if tls is None else 'https'}://{at}:{address.getsockname()[1]}"
            print_note(f"{name} at {where}/v1, dashboard at {where}/. {how}Ctrl-C ends it.")

        with ExitStack() as stack:
            if ray is None:
                from coterie.generation.engine import Engine
                from coterie.generation.speech import Voice, speaker_of
                from coterie.server.app import make_app
                from coterie.server.meters import Meters

                opened = stack.enter_context(open_model(model, opening, whole=speech))
                if speech:
                    speaker_of(opened.model, Voice())
                names = list(dict.fromkeys([*(alias or ()), opened.runtime.source.name]))
                if record_profile is not None:
                    stack.enter_context(opened.runtime.record_profile(record_profile, domain=checked_domain))
                meters = Meters()
                engine = Engine(
                    opened, parallel=parallel, most_waiting=queue, longest_wait_s=queue_timeout,
                    prefix_memory=prefix_nbytes, prefix_dir=prefix_dir, prefix_dir_limit=dir_nbytes,
                    batching=batching, watcher=meters,
                )  # fmt: skip
                app = make_app(
                    engine, meters, names=names, hosts=hosts, keys=keys, origins=origins, profile=opening.profile,
                    shared_prefixes=shared_prefixes, domain=None if record_profile is None else checked_domain,
                )  # fmt: skip
                ready = partial(say, names[0], _rows(opened, parallel, batching))
                interrupted = serve(app, engine, address, drain_s=drain, on_ready=ready, tls=tls)
            else:
                from coterie.server.gate import Gate
                from coterie.server.replicas.front import Front
                from coterie.server.replicas.ray_cluster import replicas as started
                from coterie.server.replicas.replica import ReplicaSettings

                assert replicas is not None
                settings = ReplicaSettings(
                    model=model, opening=opening, names=alias or (), parallel=parallel, most_waiting=queue,
                    longest_wait_s=queue_timeout, prefix_memory=prefix_nbytes, prefix_dir=prefix_dir,
                    prefix_dir_limit=dir_nbytes, speech=speech,
                )  # fmt: skip
                with notes().status(f"starting {replicas} replicas"):
                    cluster = stack.enter_context(started(ray, replicas, settings))
                front = Front(cluster)
                app = Gate(
                    front, hosts=hosts, keys=keys, origins=origins, meters=front.meters, paths=front.paths,
                    shared_prefixes=shared_prefixes,
                )  # fmt: skip
                word = f"{replicas} replicas of {model}"
                interrupted = serve(app, front, address, drain_s=drain, on_ready=partial(say, word), tls=tls)
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def _dir_limit(directory: Path | None, limit: str | None) -> int:
    """Bytes that a directory for beginnings of prompts may take.

    Raises:
        UsageError: If there is no directory, or it is no size.
    """
    if limit is None:
        return PREFIX_DIR_NBYTES
    if directory is None:
        raise UsageError("--prefix-dir-limit bounds a directory, and none is named.", advice="Add --prefix-dir DIR.")
    return parse_bytes(limit, what="limit of the prefix directory")


def _rows(opened: OpenModel, parallel: int, batching: Batching) -> str:
    """What is said of how several answers are computed."""
    from coterie.integration import rows_together

    rows, exact = (min(parallel, rows_together(opened.model, how)) for how in (batching, "exact"))
    if rows > 1:
        changes = "" if rows == exact else ", which may change the last bits of each"
        return f"Up to {rows} answers share a forward pass{changes}. "
    return "Answers take turns, a token each. " if parallel > 1 else ""


def _tls(certificate: Path | None, key: Path | None) -> Tls | None:
    """What encrypts; looked at before the model takes its time.

    Raises:
        UsageError: If there is one without the other.
        InputError: If they cannot be used.
    """
    from coterie.server.tls import Tls

    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("A certificate and its key are wanted together.", advice="Give --tls-cert and --tls-key.")
    tls = Tls(certificate, key)
    tls.check()
    return tls


def _check_replicas(replicas: int | None, ray: str | None, opening: Opening, batching: Batching) -> None:
    """Refuses what says half of what is needed for replicas, or what they cannot do.

    Raises:
        UsageError: If something is missing, or cannot be done.
        MissingPackageError: If Ray is.
    """
    if (replicas is None) != (ray is None):
        raise UsageError("--replicas and --ray belong together.", advice="Say --replicas N --ray ADDRESS (or local).")
    if replicas is not None and opening.memory is None:
        raise UsageError(
            "Several replicas may share a machine, and nothing says what each may take of it.",
            advice="Add --memory, which is meant for each.",
        )
    if replicas is not None and batching != "exact":
        raise UsageError(
            "Replicas answer exactly: where one is lost, another makes its answer again, and it has to be the same.",
            advice="Leave --batching out.",
        )
    if replicas is not None and opening.drop_cold is not None:
        raise UsageError(
            "Replicas answer exactly: where one is lost, another makes its answer again, and it has to be the same. "
            "With --drop-cold it would depend on what the other one has in memory.",
            advice="Leave --drop-cold out.",
        )
    if replicas is not None:
        check_ray("Replicas")


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

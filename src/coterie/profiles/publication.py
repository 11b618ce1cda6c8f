"""A profile over HTTP, to read only: what `coterie profile publish` serves."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.errors import (
    CoterieError,
    ProfileConnectionError,
    ProfileError,
    ProfileIdentityError,
    ProfileNotFoundError,
    UsageError,
)
from coterie.profiles.admission import RETRY_AFTER_S, Admission, PunctualProtocol, error_json, local_names
from coterie.profiles.database import ProfileDatabase
from coterie.profiles.exchange import (
    EXCHANGE_SCHEMA_VERSION,
    run_to_json,
    segment_to_json,
    vocabulary_to_json,
)
from coterie.profiles.profile import Profile
from coterie.profiles.ranking import rank_experts

if TYPE_CHECKING:
    from uvicorn import Config

MOST_EXPERTS = 1000
MOST_RUNS = 100
MOST_DIGESTS = 1000
MOST_SEGMENTS = 8
"""Segments with content in one answer: each is some hundred kilobytes."""
DEFAULT_LIMIT = 20

_Answer = Callable[[Mapping[str, str]], dict[str, Any]]


class Publication:
    """Answers questions about a profile. Nothing that is asked changes it.

    Args:
        database: The profile.
        share_vocabulary: Whether counts of token ids are given away: they show what was read.
        share_labels: Whether labels of runs are given away, which people wrote for themselves.
    """

    def __init__(
        self, database: ProfileDatabase, *, share_vocabulary: bool = False, share_labels: bool = False
    ) -> None:
        # Where it lies on this machine is nobody's business, and messages begin with the name.
        self._database = database.named("This profile")
        self._share_vocabulary = share_vocabulary
        self._share_labels = share_labels
        self._lock = threading.Lock()
        self._profiles: dict[str, tuple[tuple[int, int], Profile]] = {}

    def models(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """``/v1/models``: fingerprints and names of the models that were recorded."""
        _only(parameters)
        found = self._database.identities()
        return {"models": [{"identity": identity, "model": model} for identity, model in found.items()]}

    def experts(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """``/v1/experts?domain=&modality=&phase=&component=&model=&limit=``: a ranking."""
        _only(parameters, "domain", "modality", "phase", "component", "model", "limit")
        ranking = rank_experts(
            self._profile(parameters.get("model")),
            domain=parameters.get("domain"),
            modality=parameters.get("modality"),
            phase=parameters.get("phase"),
            component=parameters.get("component"),
            limit=_number(parameters, "limit", DEFAULT_LIMIT, MOST_EXPERTS),
        )
        return {"ranking": dataclasses.asdict(ranking)}

    def domains(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """``/v1/domains?model=``: domains and modalities, with their tokens."""
        _only(parameters, "model")
        profile = self._profile(parameters.get("model"))
        return {
            "identity": profile.identity,
            "model": profile.model,
            "domains": profile.domains,
            "modalities": profile.modalities,
        }

    def runs(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """``/v1/runs?model=&after=UUID&limit=``: runs by UUID."""
        _only(parameters, "model", "after", "limit")
        limit = _number(parameters, "limit", MOST_RUNS, MOST_RUNS)
        after = parameters.get("after", "")
        runs = [run for run in self._database.runs(parameters.get("model")) if run.uuid > after]
        shown = runs[:limit]
        if not self._share_labels:
            shown = [dataclasses.replace(run, label="") for run in shown]
        return {"runs": [run_to_json(run) for run in shown], "more": len(runs) > limit}

    def segments(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """``/v1/segments?run=UUID``: segments of a run.

        With ``content=false&after=&limit=`` their digests; with ``numbers=1,2`` those; else ``after=&limit=`` in order.
        """
        _only(parameters, "run", "numbers", "content", "after", "limit")
        uuid = self._run_uuid(parameters)
        digests = self._database.digests(uuid)
        content = parameters.get("content", "true") != "false"
        most = MOST_SEGMENTS if content else MOST_DIGESTS
        if "numbers" in parameters:
            wanted = _numbers(parameters["numbers"])
            if len(wanted) > most:
                raise UsageError(f"At most {most} segments at once.", got=len(wanted))
            wanted = [number for number in wanted if number in digests]
            more = False
        else:
            after = _number(parameters, "after", -1, 1 << 31)
            limit = _number(parameters, "limit", most, most)
            rest = [number for number in digests if number > after]
            wanted, more = rest[:limit], len(rest) > limit
        if not content:
            return {"segments": [{"number": n, "digest": digests[n]} for n in wanted], "more": more}
        return {"segments": [segment_to_json(found) for found in self._database.segments(uuid, wanted)], "more": more}

    def vocabulary(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """``/v1/vocabulary?run=UUID``: counts of token ids, if they are shared."""
        _only(parameters, "run")
        uuid = self._run_uuid(parameters)
        if not self._share_vocabulary:
            return {"shared": False}
        return {"shared": True, "vocabulary": vocabulary_to_json(self._database.vocabulary(uuid))}

    def _run_uuid(self, parameters: Mapping[str, str]) -> str:
        if "run" not in parameters:
            raise UsageError("Say which run: run=UUID.")
        return self._database.run(parameters["run"]).uuid

    def _profile(self, model: str | None) -> Profile:
        """The counters of a model; read again only when something was recorded."""
        identity = self._database.identity(model)
        state = self._database.state()
        with self._lock:
            kept = self._profiles.get(identity)
            if kept is None or kept[0] != state:
                kept = (state, Profile.read(self._database, identity))
                self._profiles = {identity: kept}
            return kept[1]


def make_app(
    database: ProfileDatabase,
    *,
    share_vocabulary: bool = False,
    share_labels: bool = False,
    hosts: Collection[str] | None = None,
) -> Starlette:
    """The HTTP application. Every answer is JSON with a ``schema_version``; an error has an ``error`` instead.

    Args:
        database: The profile.
        share_vocabulary: Whether counts of token ids are given away.
        share_labels: Whether labels of runs are given away.
        hosts: Names that requests may call the server by; None for any.
    """
    publication = Publication(database, share_vocabulary=share_vocabulary, share_labels=share_labels)
    answers: dict[str, _Answer] = {
        "models": publication.models,
        "domains": publication.domains,
        "experts": publication.experts,
        "runs": publication.runs,
        "segments": publication.segments,
        "vocabulary": publication.vocabulary,
    }
    routes = [Route(f"/v1/{name}", _endpoint(answer), methods=["GET"]) for name, answer in answers.items()]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Admission, hosts=hosts)],
        exception_handlers={CoterieError: _refused, HTTPException: _refused, Exception: _refused},
    )


def serve(
    database: ProfileDatabase,
    *,
    host: str,
    port: int,
    share_vocabulary: bool,
    share_labels: bool,
    allow_hosts: Collection[str] = (),
) -> None:
    """Serves a profile until it is interrupted.

    Args:
        database: The profile.
        host: Address to listen at. At one of this machine alone, only requests for this machine are answered.
        port: Port to listen at.
        share_vocabulary: Whether counts of token ids are given away.
        share_labels: Whether labels of runs are given away.
        allow_hosts: More names that requests may call the server by, such as that of a proxy before it.

    Raises:
        ProfileConnectionError: If the address cannot be listened at.
    """
    from uvicorn import Server

    names = local_names(host)
    hosts = None if names is None else {*names, *allow_hosts}
    app = make_app(database, share_vocabulary=share_vocabulary, share_labels=share_labels, hosts=hosts)
    server = Server(server_config(app, host=host, port=port))
    try:
        server.run()
    except SystemExit as error:
        # What uvicorn does when it cannot listen, after it has said why.
        raise ProfileConnectionError(
            f"{host}:{port} cannot be listened at.", advice="Choose another port: --port.", host=host, port=port
        ) from error


def server_config(app: Starlette, *, host: str, port: int) -> Config:
    """How the application is served."""
    from uvicorn import Config

    return Config(
        app,
        host=host,
        port=port,
        http=PunctualProtocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )


def _endpoint(answer: _Answer) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        # Databases wait; the event loop must not.
        found = await run_in_threadpool(answer, request.query_params)
        return _Json({"schema_version": EXCHANGE_SCHEMA_VERSION, **found})

    return endpoint


class _Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()


async def _refused(_: Request, error: Exception) -> Response:
    headers = None
    if isinstance(error, HTTPException):
        status, text = error.status_code, str(error.detail)
    elif isinstance(error, UsageError):
        status, text = 400, str(error)
    elif isinstance(error, ProfileNotFoundError | ProfileIdentityError):
        status, text = 404, str(error)
    elif isinstance(error, ProfileError):
        # Its message may name places on this machine.
        status, text = 503, "The profile cannot be read at the moment."
        headers = {"Retry-After": str(RETRY_AFTER_S)}
    else:
        status, text = 500, "Something went wrong."
    return Response(error_json(text), status_code=status, headers=headers, media_type="application/json")


def _only(parameters: Mapping[str, str], *known: str) -> None:
    for name in parameters:
        if name not in known:
            raise UsageError.unknown("parameter", name, known)


def _number(parameters: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = parameters.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > most:
        raise UsageError(f"{name}={text!r} is no number from 0 to {most}.", got=text)
    return int(text)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
        raise UsageError(f"numbers={text[:50]!r} is no list of numbers.", got=text[:50])
    return sorted({int(part) for part in parts})

"""How the server is: for what watches over it."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from coterie.server.operations import Operation
from coterie.server.refusals import Refusal
from coterie.server.schemas.answers import Status
from coterie.server.service import Service


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/healthz", summary="Says that the server is alive.", method="GET", handler=_alive, answered=Status,
            keyless=True,
        ),
        Operation(
            path="/readyz", summary="Says whether requests are served.", method="GET", handler=_ready,
            answered=Status, keyless=True,
        ),
        # As llama-server calls it.
        Operation(
            path="/health", summary="The same as /readyz.", method="GET", handler=_ready,
            answered=Status, keyless=True,
        ),
        Operation(
            path="/metrics", summary="Figures for Prometheus.", method="GET", handler=_metrics,
        ),
    ]  # fmt: skip


async def _alive(_service: Service, _request: Request) -> Status:
    return {"status": "ok"}


async def _ready(service: Service, _: Request) -> Status:
    trouble = service.engine.trouble
    if trouble is not None:
        raise Refusal(503, f"Not ready: {trouble}.", code="not_ready", retry_after=5)
    return {"status": "ready"}


async def _metrics(service: Service, _: Request) -> Response:
    # The model's figures are many.
    text = await run_in_threadpool(service.meters.text)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

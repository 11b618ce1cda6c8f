"""Addresses of other servers that this one has not: who asks is told why."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request

from coterie.server.operations import Operation
from coterie.server.refusals import Refusal
from coterie.server.service import Service

_EMBEDDINGS = "embeddings: the models that it runs were trained to go on with texts"
_RANKS = "ranking: the models that it runs were trained to go on with texts"
_ABSENT = {
    "/v1/embeddings": _EMBEDDINGS,
    "/embeddings": _EMBEDDINGS,
    "/v1/rerank": _RANKS,
    "/rerank": _RANKS,
    "/v1/reranking": _RANKS,
}


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(path=path, summary=f"There is no {why}.", handler=partial(_refuse, why), described=False)
        for path, why in _ABSENT.items()
    ]


async def _refuse(why: str, _service: Service, _request: Request) -> Any:
    raise Refusal(501, f"This server has no {why}.", code="unsupported")

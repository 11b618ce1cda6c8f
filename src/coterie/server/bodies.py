"""Bodies of requests: JSON or a form, within limits of size, time, depth and number of values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from coterie.files.json_text import JsonLimits, JsonProblem, parse_json
from coterie.server.multipart import Form, boundary_of, read_form
from coterie.server.refusals import Refusal

BODY_NBYTES = 32 << 20
"""Bytes of a body: what pictures and sounds take as text."""

_BODIES_NBYTES = 96 << 20
_SECONDS = 30.0
_SMALL = 64 << 10
_LIMITS = JsonLimits(nbytes=BODY_NBYTES, depth=64, values=200_000, digits=20)


class Bodies:
    """Reads bodies, so many bytes at once that memory lasts.

    Args:
        nbytes: Bytes of one body.
        seconds: In which it has to be there.
    """

    def __init__(self, nbytes: int = BODY_NBYTES, seconds: float = _SECONDS) -> None:
        self._nbytes = nbytes
        self._seconds = seconds
        self._held = 0

    @asynccontextmanager
    async def json(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        """The JSON object that a request consists of; its bytes are counted until the end of the context.

        Raises:
            Refusal: If it is none, or too large, deep or slow.
        """
        _check_kind(request, "application/json")
        async with self.raw(request) as data:
            yield await _parsed(data)

    @asynccontextmanager
    async def form(self, request: Request) -> AsyncIterator[Form]:
        """The form that a request consists of; otherwise as :meth:`json`."""
        _check_kind(request, "multipart/form-data")
        boundary = boundary_of(request.headers["content-type"])
        async with self.raw(request) as data:
            yield await run_in_threadpool(read_form, data, boundary)

    @asynccontextmanager
    async def raw(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, whatever it is; it is counted until the end of the context.

        How long it was stays known as ``request.state.nbytes``.

        Raises:
            Refusal: If it is too large or slow.
        """
        _check_length(request, self._nbytes)
        held = 0

        def hold(nbytes: int) -> None:
            nonlocal held
            held += nbytes
            self._held += nbytes
            if held > self._nbytes:
                raise Refusal(413, f"A request may have {self._nbytes:,} bytes.", code="request_too_large")
            if self._held > _BODIES_NBYTES:
                raise Refusal(503, "Too much is being sent at once.", code="too_many_requests", retry_after=1)

        try:
            data = bytearray()
            try:
                async with asyncio.timeout(self._seconds):
                    async for chunk in request.stream():
                        hold(len(chunk))
                        data += chunk
            except TimeoutError:
                raise Refusal(408, f"The request was not there within {self._seconds:g} s.") from None
            body = bytes(data)
            del data
            request.state.nbytes = len(body)
            yield body
        finally:
            self._held -= held


def _check_kind(request: Request, kind: str) -> None:
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said != kind:
        raise Refusal(415, f"The content type of a request is {kind} here.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "Requests must not be compressed.")


def _check_length(request: Request, most: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise Refusal(413, f"A request may have {most:,} bytes.", code="request_too_large")


async def _parsed(data: bytes) -> dict[str, Any]:
    try:
        value = parse_json(data, _LIMITS) if len(data) < _SMALL else await run_in_threadpool(parse_json, data, _LIMITS)
    except JsonProblem as problem:
        raise Refusal(400, f"The request is not valid JSON: {problem}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise Refusal(400, "The request is not a JSON object.", code="invalid_json")
    return value

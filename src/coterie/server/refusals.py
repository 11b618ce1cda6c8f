"""Why a request gets no answer: as an HTTP status, and in the words of the API that it was asked in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from coterie.errors import (
    ContextLengthError,
    CoterieError,
    EngineError,
    InputError,
    MemoryBudgetError,
    QueueFullError,
    QueueTimeoutError,
    UnsupportedError,
    UsageError,
)

Dialect = Literal["openai", "anthropic"]
"""Whose clients an address is for."""

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "not_supported_error",
}
_ANTHROPIC_TYPES = _OPENAI_TYPES | {413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}

_PARAMS = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "grammar": "response_format"}
"""What fields of :class:`~coterie.generation.sampling.Sampling` are called in requests, where it is something else."""


class Refusal(Exception):
    """A request that gets no answer, or no whole one.

    Args:
        status: HTTP status.
        message: What is wrong, for people.
        param: The field of the request that is wrong, such as ``messages.0.content``.
        code: What is wrong, for programs.
        retry_after: Seconds after which to ask again.
        headers: More headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def body(self, dialect: Dialect, request_id: str) -> dict[str, Any]:
        """The answer's JSON."""
        if dialect == "anthropic":
            kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": request_id}
        kind = _OPENAI_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error: reasons that are its business, and no places on this machine."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, EngineError):
        return _busy(error)
    if isinstance(error, ContextLengthError):
        return Refusal(400, _without_places(error), code="context_length_exceeded")
    # What a picture may take depends on what else is held at the moment.
    if isinstance(error, MemoryBudgetError) or (isinstance(error, InputError) and "room" in error.facts):
        return Refusal(503, _without_places(error), code="insufficient_memory", retry_after=1)
    if isinstance(error, UnsupportedError):
        return Refusal(400, _without_places(error), param=_param(error), code="unsupported")
    if isinstance(error, InputError | UsageError):
        return Refusal(400, _without_places(error), param=_param(error))
    if isinstance(error, CoterieError):
        return Refusal(500, _without_places(error), code=type(error).__name__)
    if isinstance(error, MemoryError):
        return Refusal(503, "There is not enough memory for this request.", code="insufficient_memory", retry_after=1)
    return Refusal(500, "Something went wrong; the server's log has more under this request's id.")


def _param(error: CoterieError) -> str | None:
    """The field of the request that an error is about."""
    field = error.facts.get("field")
    return _PARAMS.get(field, field) if isinstance(field, str) else None


def _busy(error: EngineError) -> Refusal:
    """What a client is told that may come again."""
    seconds = error.facts.get("retry_after")
    again = seconds if isinstance(seconds, int) else 5
    if isinstance(error, QueueFullError):
        return Refusal(429, error.message, code="queue_full", retry_after=again)
    if isinstance(error, QueueTimeoutError):
        return Refusal(503, error.message, code="queue_timeout", retry_after=again)
    code = "shutting_down" if error.facts.get("stopping") else "unavailable"
    return Refusal(503, error.message, code=code, retry_after=again)


def _without_places(error: CoterieError) -> str:
    """An error's message; advice is for whoever runs the server."""
    path = error.facts.get("path")
    if not isinstance(path, str | Path):
        return error.message
    return error.message.replace(str(path), Path(path).name or "the model")

"""Why a request failed, in words, and whether it is worth another try."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import inf
from typing import cast

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

TRANSPORT_ERROR = cast(type[Exception], HfHubHTTPError.__bases__[0])
"""Base of everything that the client's HTTP library raises: httpx's ``HTTPError``, or httpx2's in newer clients."""

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSED = frozenset({401, 403})
_LONGEST = 300
_RESET = re.compile(r"\bt=(\d{1,9})\b")
"""Seconds until requests are allowed again in the Hub's ``RateLimit: "api";r=0;t=55``."""


class StatusProblem(Exception):
    """An answer other than what was asked for.

    Args:
        status: Its HTTP status.
        headers: Its headers.
        elsewhere: Whether it came from another server than was asked: from the CDN that the Hub sent us to.
        server: Who was asked, for people.
    """

    def __init__(self, status: int, headers: Mapping[str, str], *, elsewhere: bool, server: str = "the Hub") -> None:
        super().__init__(f"HTTP {status}")
        self.server = server
        self.status = status
        self.headers = headers
        self.elsewhere = elsewhere
        self.code = headers.get("X-Error-Code", "")


class BrokenAnswer(Exception):
    """An answer that ends early, or is not what its headers say; another try may bring a whole one."""


PROBLEMS = (StatusProblem, BrokenAnswer, TRANSPORT_ERROR, ConnectionError)
"""What a request may end in. Errors of the disk are none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong.

    Attributes:
        cause: In words, to follow a colon.
        passing: Whether it may be gone at the next try.
        status: The HTTP status, or None if there was no answer.
        code: The Hub's own name of the error, such as ``GatedRepo``.
        retry_after: Seconds after which the server wants to be asked again, if it said so.
    """

    cause: str
    passing: bool
    status: int | None = None
    code: str = ""
    retry_after: float | None = None


class RequestFailure(Exception):
    """A request that failed for good.

    Args:
        failure: The last failure.
        tries: How often it was tried.
    """

    def __init__(self, failure: Failure, *, tries: int) -> None:
        super().__init__(failure.cause)
        self.failure = failure
        self.tries = tries

    @property
    def cause(self) -> str:
        """The cause, with the number of tries if there was more than one."""
        return self.failure.cause if self.tries == 1 else f"{self.failure.cause} (tried {self.tries} times)"


def failure_of(error: Exception) -> Failure:
    """Puts what a request raised into words."""
    if isinstance(error, StatusProblem):
        return _of_status(error)
    if isinstance(error, BrokenAnswer):
        return Failure(cause=str(error), passing=True)
    name = type(error).__name__
    if "Timeout" in name:
        cause = f"no answer for {constants.HF_HUB_DOWNLOAD_TIMEOUT:.0f} s ({name})"
    elif "Connect" in name:
        cause = f"no connection ({_said(error)})"
    elif name in ("ReadError", "WriteError", "RemoteProtocolError"):
        cause = f"the connection broke ({_said(error)})"
    else:
        cause = _said(error)
    # What no other try mends: a proxy or an address that is set wrongly, a circle of redirects, a bad encoding.
    lasting = name in ("ProxyError", "UnsupportedProtocol", "TooManyRedirects", "InvalidURL", "DecodingError")
    return Failure(cause=cause, passing=not lasting)


def _of_status(error: StatusProblem) -> Failure:
    status, where = error.status, "the server of its files" if error.elsewhere else error.server
    known = {one.value: one.phrase for one in HTTPStatus}
    cause = f"{where} answered {status}{f' {known[status]}' if status in known else ''}"
    said = " ".join(error.headers.get("X-Error-Message", "").split())[:_LONGEST]
    if said:
        cause += f": {said.rstrip('.')}"
    wait = _retry_after(error.headers) if status in _PASSING else None
    if wait is not None:
        cause += f" (Retry-After: {'for ever' if wait == inf else f'{wait:.0f} s'})"
    # A signed address of the CDN may have run out; the next try asks the Hub for a new one.
    passing = status in _PASSING or (error.elsewhere and status in _REFUSED)
    return Failure(cause=cause, passing=passing, status=status, code=error.code, retry_after=wait)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, by ``Retry-After`` (seconds or a date) or the Hub's ``RateLimit``; None if neither says."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+", value):
        return float(value) if len(value) < 10 else inf
    if value:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            date = None
        if date is not None:
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            return max(0.0, (date - datetime.now(UTC)).total_seconds())
    found = _RESET.search(headers.get("RateLimit", ""))
    return float(found[1]) if found else None


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:_LONGEST]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

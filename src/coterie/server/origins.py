"""Which web pages may ask: those of this server, and those of origins that were named to the letter."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.types import Scope

from coterie.errors import UsageError

_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")
_NAMES = re.compile(r"[A-Za-z0-9-]+( ?, ?[A-Za-z0-9-]+){0,31}")
_REMEMBERED_S = 600

Headers = list[tuple[bytes, bytes]]


class Origins:
    """Origins of pages that may use a server, as their browsers write them.

    Args:
        origins: The origins, such as ``https://chat.example.org``.

    Raises:
        UsageError: If one of them is none. There is none for all: a page that anybody wrote could else ask.
    """

    def __init__(self, origins: Collection[str] = ()) -> None:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"{origin!r} is no origin.",
                    advice="Write it as browsers do: https://chat.example.org",
                    origin=origin,
                )
        self._origins = frozenset(origins)

    def name(self, origin: str | None) -> bool:
        """Whether an Origin header is one of those that were named."""
        return origin is not None and origin in self._origins

    def headers(self, origin: str) -> Headers:
        """What lets a page of an origin that was named read an answer. Its cookies are none of it."""
        return [
            (b"access-control-allow-origin", origin.encode()),
            (b"access-control-expose-headers", b"Retry-After, X-Request-Id"),
            (b"vary", b"Origin"),
        ]

    def preflight(self, wanted: str | None) -> Headers:
        """What answers a browser that asks whether a page may ask.

        Args:
            wanted: The headers that the page wants to send; the same are allowed.
        """
        headers = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-max-age", str(_REMEMBERED_S).encode()),
        ]
        if wanted is not None and _NAMES.fullmatch(wanted):
            headers.append((b"access-control-allow-headers", wanted.encode()))
        return headers


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks whether it may ask."""
    names = {name for name, _ in scope["headers"]}
    return bool(scope["method"] == "OPTIONS" and b"origin" in names and b"access-control-request-method" in names)

"""A request as it is sent to a replica, and what comes back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from coterie.server.identity import Identity

LONGEST_PROMPT = 16_384
"""Characters by which requests are told to be alike."""
_OWN_HEADERS = frozenset({b"x-request-id", b"request-id", b"content-length", b"transfer-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request that was let in.

    Attributes:
        method: Its method.
        path: Its address.
        query: What follows the address.
        headers: Its headers, names in lower case.
        body: Its body.
        request_id: Its id.
        word: What the names in its answer follow from.
        created: When it came, in seconds since 1970.
        salt: Whose it is: its prompt shares what is computed of how it begins with those of the same.
        prompt: The beginning of what is to be continued; requests that begin alike do well on the same replica. Ray's
            router wants this name, and some text.
    """

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    request_id: str
    word: str
    created: int
    salt: str
    prompt: str

    @property
    def identity(self) -> Identity:
        """The names of its answer."""
        return Identity(self.word, self.created, seeded=True)


@dataclass(frozen=True, slots=True)
class Head:
    """An answer begins."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def is_stream(self) -> bool:
        """Whether server-sent events follow."""
        return dict(self.headers).get(b"content-type", b"").startswith(b"text/event-stream")

    @property
    def shown(self) -> list[tuple[bytes, bytes]]:
        """The headers, without those that whoever passes the answer on gives it."""
        return [(name, value) for name, value in self.headers if name not in _OWN_HEADERS]


Part = Head | bytes
"""What a replica sends: the head, then the body piece by piece."""


def prompt_of(body: bytes) -> str:
    """The text by which a request is sent to a replica that has read its beginning already; may be empty.

    It decides nothing but where a request goes: what is no request at all is refused there.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(asked, dict):
        return ""
    # In the order in which models read them.
    parts = [asked[key] for key in ("tools", "instructions", "system", "messages", "prompt", "input") if asked.get(key)]
    return "\n".join(map(_text, parts))[:LONGEST_PROMPT]


def _text(part: Any) -> str:
    return part if isinstance(part, str) else json.dumps(part, ensure_ascii=False, sort_keys=True)

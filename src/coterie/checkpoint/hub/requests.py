"""One request to the Hub, with the client's session and token, within limits of time and size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers, get_session

from coterie.checkpoint.hub.attempts import Attempts
from coterie.checkpoint.hub.failures import PROBLEMS, BrokenAnswer, StatusProblem
from coterie.files.json_text import JsonLimits, JsonProblem, parse_json

_LISTINGS = JsonLimits(nbytes=64 * 2**20, values=4_000_000)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer whose body has not been read yet.

    Attributes:
        start: Position in the file of the body's first byte: what was asked for, or 0 if the server sends everything.
        etag: The Hub's tag of the content, without quotes, or None.
        chunks: The body, as it arrives.
        following: Address of the next page of a listing, or None.
    """

    start: int
    etag: str | None
    chunks: Iterator[bytes]
    following: str | None


@contextmanager
def opened(url: str, *, first: int = 0, last: int | None = None) -> Iterator[Answer]:
    """Asks for a file, or for its bytes ``first`` to ``last``, and leaves the body to be read or not.

    A redirect to another host is followed without the token, which is httpx's rule.

    Raises:
        Exception: One of :data:`~coterie.checkpoint.hub.failures.PROBLEMS`.
    """
    # Without compression a body has the positions and the size of the file.
    headers = {**build_hf_headers(library_name="coterie"), "Accept-Encoding": "identity"}
    ranged = first > 0 or last is not None
    if ranged:
        headers["Range"] = f"bytes={first}-{'' if last is None else last}"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as response:
        elsewhere = _origin(str(response.url)) != _origin(url)
        if response.status_code not in (200, 206):
            raise StatusProblem(response.status_code, response.headers, elsewhere=elsewhere)
        start = _start(response, first) if response.status_code == 206 else 0
        of_hub = [one for one in (*response.history, response) if _origin(str(one.url)) == _origin(url)]
        following = response.links.get("next", {}).get("url")
        following = urljoin(url, following) if following else None
        yield Answer(start=start, etag=_etag(of_hub[-1].headers), chunks=response.iter_bytes(), following=following)


def read_json(url: str, what: str, *, tries: int) -> tuple[Any, str | None]:
    """Reads one answer of the Hub's interface, trying again where that may help.

    Args:
        url: Its address.
        what: What it is about, for the user.
        tries: How often it is asked before it is given up.

    Returns:
        The value, and the address of the next page, or None.

    Raises:
        HubFailure: If it cannot be had.
    """
    attempts = Attempts(what, tries=tries)
    while True:
        try:
            with opened(url) as answer:
                body = bytearray()
                for chunk in answer.chunks:
                    body += chunk
                    if len(body) > _LISTINGS.nbytes:
                        break
                following = answer.following
            if following is not None and _origin(following) != _origin(url):
                raise BrokenAnswer("its list goes on at another server, which is not asked")
            try:
                value = parse_json(bytes(body), _LISTINGS)
            except JsonProblem as problem:
                raise BrokenAnswer(f"its answer cannot be read: {problem}") from problem
        except PROBLEMS as error:
            attempts.failed(error)
        else:
            return value, following


def _start(response: Any, first: int) -> int:
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != first:
        raise BrokenAnswer("the server sent another part of the file than was asked for")
    return first


def _etag(headers: Mapping[str, str]) -> str | None:
    value = headers.get("X-Linked-Etag") or headers.get("ETag") or ""
    return value.removeprefix("W/").strip('"') or None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port

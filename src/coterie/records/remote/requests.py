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

from coterie.files.json_text import JsonLimits, JsonProblem, parse_json
from coterie.records.remote.attempts import Attempts
from coterie.records.remote.failures import PROBLEMS, BrokenAnswer, StatusProblem

_LISTINGS = JsonLimits(nbytes=64 * 2**20, values=4_000_000)
_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer whose body has not been read yet.

    Attributes:
        start: Position in the file of the body's first byte: what was asked for, or 0 if the server sends everything.
        total: Size of the file by what a server says that sends a part of it, or None.
        etag: The Hub's tag of the content, without quotes, or None.
        chunks: The body, as it arrives.
        following: Address of the next page of a listing, or None.
    """

    start: int
    total: int | None
    etag: str | None
    chunks: Iterator[bytes]
    following: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where a file's bytes are served now.

    Attributes:
        url: The address, perhaps a signed one that runs out.
        etag: The tag that the first server has for the content, without quotes, or None.
        nbytes: The size that it states, or None.
    """

    url: str
    etag: str | None
    nbytes: int | None


def located(url: str) -> Located:
    """Asks where a file is served: at its own address, or at another server that this one sends to.

    Raises:
        Exception: One of :data:`~coterie.records.remote.failures.PROBLEMS`.
    """
    here = url
    for _ in range(_REDIRECTS):
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        response = get_session().head(here, headers=_headers(here), follow_redirects=False, timeout=timeout)
        status, target = response.status_code, response.headers.get("Location")
        if status == 200:
            return Located(url=here, etag=_etag(response.headers), nbytes=_size(response))
        if status in (405, 501):
            return Located(url=here, etag=None, nbytes=None)  # it knows no such question
        if status not in (301, 302, 303, 307, 308) or not target:
            raise StatusProblem(status, response.headers, elsewhere=False, server=_server(here))
        target = urljoin(here, target)
        if _origin(target) != _origin(here):
            return Located(url=target, etag=_etag(response.headers), nbytes=_size(response))
        here = target
    raise BrokenAnswer(f"its server sends from one address to the next, {_REDIRECTS} times")


@contextmanager
def opened(url: str, *, first: int = 0, last: int | None = None, served: str | None = None) -> Iterator[Answer]:
    """Asks for a file, or for its bytes ``first`` to ``last``, and leaves the body to be read or not.

    The token goes to the Hub only. A redirect to another host is followed without it, which is httpx's rule.

    Args:
        url: The file's address.
        first: Its first byte that is wanted.
        last: The last one; None for all up to the end.
        served: The address that :func:`located` gave for it, which is asked then.

    Raises:
        Exception: One of :data:`~coterie.records.remote.failures.PROBLEMS`.
    """
    asked = served or url
    headers = _headers(asked)
    ranged = first > 0 or last is not None
    if ranged:
        headers["Range"] = f"bytes={first}-{'' if last is None else last}"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", asked, headers=headers, follow_redirects=True, timeout=timeout) as response:
        elsewhere = _origin(str(response.url)) != _origin(url)
        if response.status_code not in (200, 206):
            raise StatusProblem(response.status_code, response.headers, elsewhere=elsewhere, server=_server(url))
        start = _start(response, first) if response.status_code == 206 else 0
        own = [one for one in (*response.history, response) if _origin(str(one.url)) == _origin(asked)]
        following = response.links.get("next", {}).get("url")
        following = urljoin(url, following) if following else None
        total = _size(response) if response.status_code == 206 else None
        etag = _etag(own[-1].headers)
        yield Answer(start=start, total=total, etag=etag, chunks=response.iter_bytes(), following=following)


def read_json(url: str, what: str, *, tries: int) -> tuple[Any, str | None]:
    """Reads one answer of the Hub's interface, trying again where that may help.

    Args:
        url: Its address.
        what: What it is about, for the user.
        tries: How often it is asked before it is given up.

    Returns:
        The value, and the address of the next page, or None.

    Raises:
        RequestFailure: If it cannot be had.
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


def _headers(url: str) -> dict[str, str]:
    """What every request says. Without compression a body has the positions and the size of the file."""
    token = None if _origin(url) == _origin(constants.ENDPOINT) else False
    return {**build_hf_headers(library_name="coterie", token=token), "Accept-Encoding": "identity"}


def _server(url: str) -> str:
    """What to call whoever an address belongs to."""
    return "the Hub" if _origin(url) == _origin(constants.ENDPOINT) else urlsplit(url).hostname or "the server"


def _size(response: Any) -> int | None:
    """The size of the whole file, by the Hub's own header, by that of a part, or by that of all of it."""
    stated = response.headers.get("X-Linked-Size", "")
    if not stated and response.status_code == 200:
        stated = response.headers.get("Content-Length", "")
    if re.fullmatch(r"\d{1,18}", stated):
        return int(stated)
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return None if found is None or found[3] == "*" else int(found[3])


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

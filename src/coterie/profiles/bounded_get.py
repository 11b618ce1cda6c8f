"""HTTP requests to a server that nobody vouches for: bounded in bytes and in time, to that server and no other."""

from __future__ import annotations

import base64
import http.client
import io
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import IO, Any

_RECEIVE_TIMEOUT_S = 30.0
"""The longest that a server may be silent."""
_PATIENCE_S = 120.0
_LEAST_BYTES_PER_S = 16 << 10
_SECONDS_PER_ANSWER = 0.25
"""A server is waited for, over all requests together, for the patience, and longer by this for what it has given."""
_CHUNK = 1 << 16
_TRIES = 6
_LONGEST_PAUSE_S = 30.0
_TRY_AGAIN = (429, 503)
_MOST_REDIRECTS = 5
_ERROR_BYTES = 1 << 16


class TooLargeError(OSError):
    """An answer has more bytes than it may have."""


class RefusedError(OSError):
    """The server answers with an error.

    Attributes:
        status: Its code.
        reason: What the server says by it.
        body: The beginning of the answer.
        pause_s: After how many seconds it wants to be asked again; None if it does not say.
    """

    def __init__(self, status: int, reason: str, body: bytes, pause_s: int | None) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason
        self.body = body
        self.pause_s = pause_s


class BoundedClient:
    """Asks one server.

    Redirects are followed to the same host only, over HTTP or HTTPS, and never from HTTPS to HTTP. A server that says
    it is busy (429, 503) is asked again, after the time that it names.

    Args:
        url: Its address, with user and password if it wants them.
        sleep: Waits so many seconds.

    Attributes:
        name: The address without user and password.
    """

    def __init__(self, url: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        parts = urllib.parse.urlsplit(url.rstrip("/"))
        self.name = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self._headers = {"Accept": "application/json"}
        if parts.username is not None:
            user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        self._sleep = sleep
        self._time_left = _PATIENCE_S
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            _Handler(self._deadline),
            _SameHost(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
        ):
            self._opener.add_handler(handler)
        self._ends_at = 0.0

    def get(self, path: str, most: int) -> bytes:
        """The body of an answer.

        Args:
            path: Path and query.
            most: Bytes that it may have.

        Raises:
            TooLargeError: If it has more.
            RefusedError: If the server answers with an error.
            OSError: If it does not answer, or too slowly.
            http.client.HTTPException: If it does not speak HTTP.
            ValueError: If the address is none.
        """
        pause = 1.0
        for _ in range(_TRIES - 1):
            try:
                return self._get_once(path, most)
            except RefusedError as error:
                if error.status not in _TRY_AGAIN:
                    raise
                wait = min(_LONGEST_PAUSE_S, pause if error.pause_s is None else error.pause_s)
                if wait > self._time_left:
                    raise
                self._time_left -= wait
                self._sleep(wait)
                pause *= 2
        return self._get_once(path, most)

    def _get_once(self, path: str, most: int) -> bytes:
        request = urllib.request.Request(f"{self.name}{path}", headers=self._headers)
        begun = time.monotonic()
        self._ends_at = begun + self._time_left
        received = 0
        try:
            with self._opener.open(request, timeout=_RECEIVE_TIMEOUT_S) as response:
                parts = []
                while part := response.read(min(_CHUNK, most + 1 - received)):
                    parts.append(part)
                    received += len(part)
                if received > most:
                    raise TooLargeError(f"more than {most} bytes at once")
                return b"".join(parts)
        except urllib.error.HTTPError as error:
            with error:
                body = error.read(_ERROR_BYTES)
            raise RefusedError(
                error.code, str(error.reason), body, _seconds(error.headers.get("Retry-After"))
            ) from error
        finally:
            taken = time.monotonic() - begun
            self._time_left += _SECONDS_PER_ANSWER + received / _LEAST_BYTES_PER_S - taken

    def _deadline(self) -> float:
        return self._ends_at


def _seconds(text: str | None) -> int | None:
    """Retry-After as a number of seconds; dates are not looked at."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 6 else None


class _SameHost(urllib.request.BaseHandler):
    """Follows redirects, but not to where the publisher could not have been asked to send us."""

    def http_error_302(self, request: Any, answer: IO[bytes], code: int, reason: str, headers: Any) -> Any:
        answer.close()
        before = urllib.parse.urlsplit(request.full_url)
        after = urllib.parse.urlsplit(urllib.parse.urljoin(request.full_url, headers.get("Location", "")))
        same = (after.scheme, after.hostname, after.port) == (before.scheme, before.hostname, before.port)
        safer = (before.scheme, after.scheme) == ("http", "https") and after.hostname == before.hostname
        redirects = getattr(request, "redirects", 0)
        if not (same or safer) or redirects >= _MOST_REDIRECTS:
            raise OSError(f"it sends us elsewhere ({after.scheme}://{after.netloc[:80]})")
        following = urllib.request.Request(urllib.parse.urlunsplit(after), headers=dict(request.header_items()))
        following.redirects = redirects + 1  # type: ignore[attr-defined]
        return self.parent.open(following, timeout=request.timeout)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Handler(urllib.request.HTTPSHandler):
    """HTTP and HTTPS over connections that keep to a deadline.

    Args:
        deadline: When the request that is being made must have been answered, by the monotonic clock.
    """

    def __init__(self, deadline: Callable[[], float]) -> None:
        super().__init__()
        self._ends_at = deadline

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_timed(http.client.HTTPConnection, self._ends_at), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_timed(http.client.HTTPSConnection, self._ends_at), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


def _timed(kind: type[http.client.HTTPConnection], deadline: Callable[[], float]) -> Any:
    class Timed(kind):  # type: ignore[valid-type, misc]
        def connect(self: Any) -> None:
            kind.connect(self)
            self.sock = _TimedSocket(self.sock, deadline())

    return Timed


class _TimedSocket:
    """Of a socket what `http.client` uses; receiving ends at a deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket = sock
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_TimedReader(self._socket, self._deadline))

    def sendall(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()


class _TimedReader(io.RawIOBase):
    """What a socket receives until a deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket = sock
        # The socket stays open until this is closed, too.
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it is too slow")
        self._socket.settimeout(min(_RECEIVE_TIMEOUT_S, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()

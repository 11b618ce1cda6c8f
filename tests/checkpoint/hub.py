"""A Hub on this machine: enough of its HTTP interface for the real client, faults that can be switched on, and a log.

As the real one it sends whoever asks for a large file to a CDN, a server on another port, with the file's size and
SHA-256 on the redirect; small files it serves itself, with git's name of the content as ETag.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit
from weakref import WeakSet

from .uploads import Uploads

_LARGE = (".safetensors", ".bin", ".gguf")
_XET: frozenset[str] = frozenset()
_PIECE = 16 * 1024

Kind = Literal["status", "reset", "close", "stall", "corrupt", "unranged", "short", "headers"]


@dataclass(slots=True)
class Asked:
    """One request for a file: method, revision, file, and the bytes of the body that were sent; by whom, with what."""

    method: str
    revision: str
    file: str
    sent: int
    server: Literal["hub", "cdn"]
    token: str | None = None
    asked_range: str | None = None


@dataclass(slots=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        kind: ``status`` answers with a status; ``reset`` and ``close`` end the connection within the body, in the rough
            or the orderly way; ``stall`` stops sending for a while; ``corrupt`` sends another byte; ``unranged``
            ignores ranges; ``short`` sends and promises fewer bytes than the file has; ``headers`` says other headers.
        match: Regular expression on ``METHOD SERVER FILE``, such as ``GET cdn model.safetensors``; the interface
            for lists is the file ``api``.
        count: How many requests are struck, or None for all.
        after: Bytes of the body that are sent before; the byte that is another one. A body that is shorter is spared.
        status: For ``status``.
        headers: For ``status`` and ``headers``.
        seconds: For ``stall``.
    """

    kind: Kind
    match: str = ""
    count: int | None = None
    after: int = 0
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 1.0


@dataclass(slots=True)
class Repository:
    """Commits are directories; branches and tags point to commits."""

    commits: dict[str, Path] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    messages: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, directory: Path, reference: str = "main") -> str:
        """Makes a commit of a directory and moves a reference to it; returns the commit's hash."""
        sha = hashlib.sha1(str(directory).encode()).hexdigest()
        self.commits[sha] = directory
        self.references[reference] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.references.get(revision, revision if revision in self.commits else None)


class LocalHub:
    """Serves repositories by id; says what clients asked for files, and from where; ``faults`` are what goes wrong.

    ``uploaded`` is what they sent, ``contents`` the large files among that, by SHA-256.

    Args:
        folder: Where commits are kept that clients make; there are none without it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.uploaded: list[str] = []
        self.contents: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.announced: list[str] = []
        self.repositories: dict[str, Repository] = {}
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        self.page = 1000
        self.writing = 0
        self.idle = threading.Condition()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connections: WeakSet[socket.socket] = WeakSet()
        self.connected: list[Any] = []
        self._servers = [self._serve("hub"), self._serve("cdn")]
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, name: Literal["hub", "cdn"]) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            served = hub
            server_name = name

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def get_request(self) -> tuple[socket.socket, Any]:
                found = super().get_request()
                hub._connections.add(found[0])
                hub.connected.append(found[1])
                return found

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # whoever was asked to reset connections gets errors of them

        return Server(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def new_repository(self, repo: str) -> Repository:
        """Makes a repository without a commit."""
        return self.repositories.setdefault(repo, Repository())

    def fetched(self, suffix: str = ".safetensors") -> dict[str, int]:
        """Bytes that were sent of each file with this ending; of who left early what was on its way."""
        with self.idle:
            self.idle.wait_for(lambda: self.writing == 0, timeout=10)
        total: dict[str, int] = {}
        for asked in self.asked:
            if asked.method == "GET" and asked.file.endswith(suffix) and asked.sent:
                total[asked.file] = total.get(asked.file, 0) + asked.sent
        return total

    def fault(self, kinds: tuple[Kind, ...], what: str, length: int = 0) -> Fault | None:
        """The first fault of these kinds that strikes this request; counts it."""
        with self._lock:
            for fault in self.faults:
                if fault.kind in kinds and fault.count != 0 and fault.after <= length and re.search(fault.match, what):
                    if fault.count is not None:
                        fault.count -= 1
                    return fault
        return None

    def pause(self, seconds: float) -> None:
        """Waits, but not longer than the Hub is open."""
        self._closing.wait(seconds)

    def close(self) -> None:
        self._closing.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
        # Clients keep theirs for later, and a thread would wait at each of them.
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(Uploads, BaseHTTPRequestHandler):
    served: LocalHub
    server_name: Literal["hub", "cdn"]
    protocol_version = "HTTP/1.1"
    # Else a body waits 40 ms after its head, for an acknowledgement that the client puts off.
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        asked = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        # What else the client asks a Hub for, once in a process, is none of the requests that faults are meant for.
        name = resolved[3] if resolved else "api" if asked else "other"
        what = f"{self.command} {self.server_name} {name}"
        fault = self.served.fault(("status",), what)
        if fault is not None:
            self._send(fault.status, b'{"error":"broken"}', dict(fault.headers))
        elif resolved and self.server_name == "cdn":
            self._content(self.served.repositories[resolved[1]].commits[resolved[2]], resolved[2], resolved[3], what)
        elif resolved:
            self._file(*resolved.groups(), what)
        elif asked:
            self._about(asked[1], asked[2] or "revision", asked[3] or "main")
        else:
            self._refuse(404, "EntryNotFound")

    def _about(self, repo: str, kind: str, revision: str) -> None:
        found = self._commit(repo, revision)
        if found is None:
            return
        sha, directory = found
        files = sorted(p for p in directory.rglob("*") if p.is_file())
        headers = {"Content-Type": "application/json", "X-Repo-Commit": sha}
        if kind == "tree":
            start = int(re.sub(r"\D", "", urlsplit(self.path).query.partition("cursor=")[2]) or 0)
            body: Any = [_listed(directory, p) for p in files[start : start + self.served.page]]
            if start + self.served.page < len(files):
                address = f"{self.served.url}{urlsplit(self.path).path}?recursive=True&cursor={start + len(body)}"
                headers["Link"] = f'<{address}>; rel="next"'
        else:
            tags = self.served.repositories[repo].tags
            siblings = [{"rfilename": p.relative_to(directory).as_posix()} for p in files]
            private = self.served.repositories[repo].private
            body = {"id": repo, "modelId": repo, "sha": sha, "private": private, "tags": tags, "siblings": siblings}
        self._send(200, json.dumps(body).encode(), headers)

    def _file(self, repo: str, revision: str, name: str, what: str) -> None:
        found = self._commit(repo, revision)
        if found is None:
            return
        sha, directory = found
        path = directory / name
        if not path.is_file():
            self._refuse(404, "EntryNotFound", sha)
        elif name.endswith(_LARGE):
            self._note(revision, name, 0)
            linked = {"X-Linked-Etag": f'"{_sha256(path)}"', "X-Linked-Size": str(path.stat().st_size)}
            place = {"Location": f"{self.served.cdn}/{repo}/resolve/{sha}/{name}?Signature=x"}
            self._send(302, b"", {"X-Repo-Commit": sha, **linked, **place})
        else:
            self._content(directory, revision, name, what)

    def _content(self, directory: Path, revision: str, name: str, what: str) -> None:
        path = directory / name
        content = bytearray(path.read_bytes())
        size, first, status = len(content), 0, 200
        tag = "x" if self.server_name == "cdn" else _git_blob(path)
        headers = {"X-Repo-Commit": revision, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        last = size - 1
        if asked and self.served.fault(("unranged",), what) is None:
            first, last, status = int(asked[1]), min(int(asked[2] or size - 1), size - 1), 206
            if first >= size:
                self._send(416, b"", {"Content-Range": f"bytes */{size}"})
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if (other := self.served.fault(("headers",), what)) is not None:
            headers |= other.headers
        corrupt = self.served.fault(("corrupt",), what, size - 1)
        if corrupt is not None:
            content[corrupt.after] ^= 1
        if (short := self.served.fault(("short",), what)) is not None:
            last = max(first, last - max(1, short.after))
        body = bytes(content[first : last + 1])
        self._send(status, body, headers, note=(revision, name), what=what)

    def _commit(self, repo: str, revision: str) -> tuple[str, Path] | None:
        repository = self.served.repositories.get(repo)
        if repository is None:
            self._refuse(401, "RepoNotFound")  # as the real Hub answers who has no token
            return None
        sha = repository.resolve(revision)
        if sha is None:
            self._refuse(404, "RevisionNotFound")
            return None
        return sha, repository.commits[sha]

    def _refuse(self, status: int, code: str, sha: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code or "broken"}
        self._send(status, b"{}", headers | ({"X-Repo-Commit": sha} if sha else {}))

    def _note(self, revision: str, name: str, sent: int) -> Asked:
        """Logs a request before it is answered, so that whoever has the answer finds it."""
        asked_range, token = self.headers.get("range"), self.headers.get("authorization")
        asked = Asked(self.command, revision, name, sent, self.server_name, token, asked_range)
        self.served.asked.append(asked)
        return asked

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        *,
        note: tuple[str, str] | None = None,
        what: str | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            body = b""
        noted = None if note is None else self._note(*note, len(body))
        with self.served.idle:
            self.served.writing += 1
        try:
            sent = self._write(body, what)
            if noted is not None:
                noted.sent = sent
        finally:
            with self.served.idle:
                self.served.writing -= 1
                self.served.idle.notify_all()

    def _write(self, body: bytes, what: str | None) -> int:
        """Sends a body, as far as no fault stops it; returns the bytes that were sent."""
        what = what or f"{self.command} {self.server_name} api"
        stall = self.served.fault(("stall",), what, len(body))
        broken = self.served.fault(("reset", "close"), what, len(body))
        end, sent = len(body) if broken is None else min(broken.after, len(body)), 0
        with suppress(ConnectionError):
            while sent < end:
                if stall is not None and sent >= stall.after:
                    self.wfile.flush()
                    self.served.pause(stall.seconds)
                    stall = None
                count = min(_PIECE, end - sent, stall.after - sent if stall and stall.after > sent else _PIECE)
                self.wfile.write(body[sent : sent + count])
                sent += count
        if broken is not None:
            self.close_connection = True
            if broken.kind == "reset":
                self.wfile.flush()
                time.sleep(0.05)  # what was sent should arrive before
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        return sent


def _listed(directory: Path, path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    entry: dict[str, Any] = {
        "type": "file",
        "path": path.relative_to(directory).as_posix(),
        "size": size,
        "oid": _git_blob(path),
    }
    if path.name.endswith(_LARGE):
        entry["lfs"] = {"oid": _sha256(path), "size": size}
    if path.name in _XET:
        entry["xetHash"] = _sha256(path)
    return entry


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git_blob(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

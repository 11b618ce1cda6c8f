"""A Hub on this machine that serves one directory as a repository, at a given rate, and counts what it sends."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
_PIECE = 256 * 1024
_LARGE = ".safetensors"


class HubServer:
    """Serves a directory under one id; used in a ``with`` statement.

    Args:
        repo_id: The id.
        directory: Its files.
        bytes_per_second: Of all connections together.

    Attributes:
        sent: Bytes of files that were sent, by name.
    """

    def __init__(self, repo_id: str, directory: Path, *, bytes_per_second: float) -> None:
        self.repo_id = repo_id
        self.directory = directory
        self.sent: dict[str, int] = {}
        self._rate = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()
        self.files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
        # Of the large ones: what the client compares whole files with.
        self.digests = {name: _sha256(path) for name, path in self.files.items() if name.endswith(_LARGE)}
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def total(self) -> int:
        """Bytes of files that were sent."""
        with self._lock:
            return sum(self.sent.values())

    def pay(self, name: str, nbytes: int) -> None:
        """Counts bytes, and waits for as long as the line would take for them."""
        with self._lock:
            self.sent[name] = self.sent.get(name, 0) + nbytes
            begins = max(self._free_at, time.monotonic())
            self._free_at = begins + nbytes / self._rate
            wait = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait))


class _Handler(BaseHTTPRequestHandler):
    served: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Answers the client's requests for lists and files."""
        hub, path = self.served, unquote(urlsplit(self.path).path)
        if path.startswith(f"/api/models/{hub.repo_id}/tree/"):
            self._json([self._listed(name) for name in sorted(hub.files)])
        elif path.startswith(f"/api/models/{hub.repo_id}"):
            self._json({"id": hub.repo_id, "sha": COMMIT, "tags": [], "siblings": []})
        elif path.startswith(prefix := f"/{hub.repo_id}/resolve/{COMMIT}/") and path[len(prefix) :] in hub.files:
            self._file(path[len(prefix) :])
        else:
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"{}")

    def _listed(self, name: str) -> dict[str, object]:
        size = self.served.files[name].stat().st_size
        entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": _blob_id(self._small(name))}
        if name in self.served.digests:
            entry["lfs"] = {"oid": self.served.digests[name], "size": size}
        return entry

    def _small(self, name: str) -> bytes:
        return b"" if name in self.served.digests else self.served.files[name].read_bytes()

    def _file(self, name: str) -> None:
        hub = self.served
        size = hub.files[name].stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]) if asked and asked[2] else size - 1, size - 1)
        headers = {"ETag": f'"{hub.digests.get(name) or _blob_id(self._small(name))}"', "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._send(206 if asked else 200, headers, None, nbytes=last - first + 1)
        with hub.files[name].open("rb", buffering=0) as file:
            file.seek(first)
            left = last - first + 1
            while left > 0:
                piece = file.read(min(_PIECE, left))
                try:
                    self.wfile.write(piece)
                except ConnectionError:
                    self.close_connection = True
                    return
                hub.pay(name, len(piece))
                left -= len(piece)

    def _json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: Mapping[str, str], body: bytes | None, *, nbytes: int | None = None) -> None:
        self.send_response(status)
        for name, text in {**headers, "X-Repo-Commit": COMMIT}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body or b"") if nbytes is None else nbytes))
        self.end_headers()
        if body:
            self.wfile.write(body)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

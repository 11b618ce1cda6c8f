"""A Hub on this machine: enough of its HTTP interface for the real client, and a log of what was asked for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: method, revision and file of a repository, and the bytes of the body that was sent."""

    method: str
    revision: str
    file: str
    sent: int


@dataclass(slots=True)
class Repository:
    """Commits are directories; branches and tags point to commits."""

    commits: dict[str, Path] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)

    def commit(self, directory: Path, reference: str = "main") -> str:
        """Makes a commit of a directory and moves a reference to it; returns the commit's hash."""
        sha = hashlib.sha1(str(directory).encode()).hexdigest()
        self.commits[sha] = directory
        self.references[reference] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.references.get(revision, revision if revision in self.commits else None)


class LocalHub:
    """Serves repositories by id; ``asked`` is what clients asked for files."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[Asked] = []
        self.failing: set[str] = set()
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def fetched(self, suffix: str = ".safetensors") -> dict[str, int]:
        """Bytes that were sent of each file with this ending."""
        total: dict[str, int] = {}
        for asked in self.asked:
            if asked.method == "GET" and asked.file.endswith(suffix):
                total[asked.file] = total.get(asked.file, 0) + asked.sent
        return total

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: LocalHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path):
            self._about(match[1], match[2], match[3] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._refuse(404, "EntryNotFound")

    def _about(self, repo: str, kind: str | None, revision: str) -> None:
        found = self._commit(repo, revision)
        if found is None:
            return
        sha, directory = found
        files = sorted(p for p in directory.iterdir() if p.is_file())
        if kind == "tree":
            body: Any = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": _etag(p)[:40]} for p in files
            ]
        else:
            body = {"id": repo, "modelId": repo, "sha": sha, "siblings": [{"rfilename": p.name} for p in files]}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json", "X-Repo-Commit": sha})

    def _file(self, repo: str, revision: str, name: str) -> None:
        found = self._commit(repo, revision)
        if found is None:
            return
        sha, directory = found
        path = directory / name
        if not path.is_file():
            self._refuse(404, "EntryNotFound", sha)
            return
        if name in self.served.failing and self.command == "GET":
            self._refuse(500, "", sha)
            return
        content = path.read_bytes()
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"}
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or ""):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            content, status = content[first : last + 1], 206
        sent = len(content) if self.command == "GET" else 0
        self.served.asked.append(Asked(self.command, revision, name, sent))
        self._send(status, content, headers)

    def _commit(self, repo: str, revision: str) -> tuple[str, Path] | None:
        repository = self.served.repositories.get(repo)
        if repository is None:
            self._refuse(404, "RepoNotFound")
            return None
        sha = repository.resolve(revision)
        if sha is None:
            self._refuse(404, "RevisionNotFound")
            return None
        return sha, repository.commits[sha]

    def _refuse(self, status: int, code: str, sha: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code or "broken"}
        self._send(status, b"{}", headers | ({"X-Repo-Commit": sha} if sha else {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

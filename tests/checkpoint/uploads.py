"""What a Hub does when a client uploads: makes repositories and branches, takes large files, makes commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LARGE = (".safetensors", ".bin", ".gguf")


class Uploads:
    """The routes of an upload, for a handler that has ``served``, ``headers``, ``rfile``, ``command`` and ``_send``."""

    served: Any
    headers: Any
    rfile: Any
    command: str
    server_name: str
    path: str
    close_connection: bool
    _send: Callable[..., None]
    _refuse: Callable[..., None]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)) if self._length() else self._chunked()
        path = self.path.partition("?")[0]
        routes: list[tuple[str, str, Callable[..., None]]] = [
            ("create", r"/api/repos/create", self._create),
            ("branch", r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", self._branch),
            ("card", r"/api/validate-yaml", self._validate),
            ("preupload", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            ("batch", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            ("commit", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self._commit_files),
        ]
        for name, pattern, answer in routes:
            found = re.fullmatch(pattern, path)
            if found is None:
                continue
            self.served.uploaded.append(f"POST {name}")
            fault = self.served.fault(("status",), f"POST {self.server_name} {name}")
            if fault is not None:
                self._send(fault.status, b'{"error":"broken"}', dict(fault.headers))
            else:
                answer(body, *found.groups())
            return
        self._refuse(404, "EntryNotFound")

    def do_PUT(self) -> None:
        oid = self.path.partition("?")[0].rpartition("/")[2]
        nbytes = int(self.headers["content-length"])
        what = f"PUT {self.server_name} {self.served.names.get(oid, oid)}"
        broken = self.served.fault(("reset", "close"), what, nbytes)
        if broken is not None:
            self.rfile.read(broken.after)
            self.close_connection = True
            self.connection.close()  # type: ignore[attr-defined]
            return
        content = self.rfile.read(nbytes)
        self.served.uploaded.append(what)
        fault = self.served.fault(("status",), what)
        if fault is not None:
            self._send(fault.status, b"", dict(fault.headers))
        elif hashlib.sha256(content).hexdigest() != oid:
            self._send(400, b"other bytes than were announced", {})
        else:
            self.served.contents[oid] = content
            self._send(200, b"", {"ETag": f'"{oid}"'})

    def _length(self) -> bool:
        return self.headers.get("transfer-encoding") != "chunked"

    def _chunked(self) -> bytes:
        body = bytearray()
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(body)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.served.repositories:
            self._json({"error": "You already created this model repo", "url": f"{self.served.url}/{repo}"}, 409)
            return
        directory = self.served.folder / "empty"
        directory.mkdir(exist_ok=True)
        (directory / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        repository = self.served.new_repository(repo)
        repository.private = bool(asked.get("private", asked.get("visibility") == "private"))
        repository.commit(directory)
        self._json({"url": f"{self.served.url}/{repo}", "name": repo})

    def _branch(self, body: bytes, repo: str, branch: str) -> None:
        references = self.served.repositories[repo].references
        if branch in references:
            self._json({"error": "Reference already exists"}, 409)
            return
        references[branch] = references["main"]
        self._json({})

    def _validate(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, repo: str, branch: str) -> None:
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(_LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for one in json.loads(body)["files"]
        ]
        self.served.announced = [one["path"] for one in files]
        self._json({"files": files})

    def _batch(self, body: bytes, repo: str) -> None:
        objects = []
        for one, name in zip(json.loads(body)["objects"], self.served.announced, strict=False):
            self.served.names[one["oid"]] = name
            entry = {"oid": one["oid"], "size": one["size"], "authenticated": True}
            if one["oid"] not in self.served.contents:
                href = f"{self.served.cdn}/upload/{one['oid']}?Signature=x"
                entry["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _commit_files(self, body: bytes, repo: str, branch: str) -> None:
        repository = self.served.repositories[repo]
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = lines[0]["value"]
        before = repository.references[branch]
        if header.get("parentCommit") not in (None, before):
            self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
            return
        number = len(repository.commits)
        directory = self.served.folder / f"{repo.replace('/', '--')}-{number}"
        shutil.copytree(repository.commits[before], directory, copy_function=shutil.copy)
        for line in lines[1:]:
            self._apply(directory, line["key"], line["value"])
        sha = repository.commit(directory, branch)
        repository.messages[sha] = header["summary"]
        self._json({"commitUrl": f"{self.served.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

    def _apply(self, directory: Path, kind: str, value: dict[str, Any]) -> None:
        path = directory / value["path"]
        if kind == "deletedFile":
            path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(value["content"]) if kind == "file" else self.served.contents[value["oid"]])

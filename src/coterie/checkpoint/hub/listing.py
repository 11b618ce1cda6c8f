"""What a repository has at one commit, as the Hub lists it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants

from coterie.checkpoint.hub.checksums import is_checksum
from coterie.records.remote.attempts import PATIENCE
from coterie.records.remote.failures import Failure, RequestFailure
from coterie.records.remote.requests import read_json

_LARGEST = 200_000
"""Files of a repository; the Hub recommends to stay below half of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        name: Its path within the repository.
        nbytes: Its size.
        blob_id: Git's name of its content, or of the pointer to it for a large file; None if the listing has none.
        sha256: Checksum of the content of a large file, or None.
        in_xet: Whether the Hub keeps it in its Xet storage, too.
    """

    name: str
    nbytes: int
    blob_id: str | None = None
    sha256: str | None = None
    in_xet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A repository at one commit.

    Attributes:
        repo_id: Its id.
        commit: The commit.
        files: Its files by name.
        base_models: The models that it says it was made from.
    """

    repo_id: str
    commit: str
    files: Mapping[str, RemoteFile]
    base_models: tuple[str, ...] = ()


def list_repository(repo_id: str, revision: str | None, *, tries: int = PATIENCE.tries) -> Listing:
    """Asks the Hub for a repository's files at a branch, tag or commit.

    Args:
        repo_id: The repository.
        revision: Branch, tag or commit; None for the main branch.
        tries: How often the Hub is asked before it is given up.

    Raises:
        RequestFailure: If it does not say.
    """
    base = f"{constants.ENDPOINT}/api/models/{repo_id}"
    about, _ = read_json(
        f"{base}/revision/{quote(revision or constants.DEFAULT_REVISION, safe='')}", repo_id, tries=tries
    )
    commit = about.get("sha") if isinstance(about, dict) else None
    if not isinstance(commit, str) or not is_plain_name(commit):
        raise _not_a_hub("names no commit")
    files: dict[str, RemoteFile] = {}
    page: str | None = f"{base}/tree/{commit}?recursive=True&expand=False"
    while page is not None:
        entries, page = read_json(page, repo_id, tries=tries)
        if not isinstance(entries, list):
            raise _not_a_hub("is no list of files")
        files.update((one.name, one) for one in map(_file, entries) if one is not None)
        if len(files) > _LARGEST:
            raise _not_a_hub(f"lists more than {_LARGEST:,} files")
    return Listing(repo_id=repo_id, commit=commit, files=files, base_models=_base_models(about.get("tags")))


def is_plain_name(name: str) -> bool:
    """Whether a text of a server may be a relative path here: it leads nowhere else on any system."""
    return (
        0 < len(name) <= 1024
        and name.isprintable()
        and not set(name) & set('\\:*?"<>|')
        and all(part not in ("", ".", "..") and len(part) <= 255 for part in name.split("/"))
    )


def _file(entry: Any) -> RemoteFile | None:
    """One entry of the listing; None for directories, and for what could not be a file here."""
    if not isinstance(entry, dict) or entry.get("type") != "file":
        return None
    name, large = entry.get("path"), entry.get("lfs")
    if not isinstance(name, str) or not is_plain_name(name):
        return None
    large = large if isinstance(large, dict) else {}
    size, blob_id, sha256 = large.get("size", entry.get("size")), entry.get("oid"), large.get("oid")
    if type(size) is not int or not 0 <= size < 2**63:
        return None
    return RemoteFile(
        name=name,
        nbytes=size,
        blob_id=blob_id if isinstance(blob_id, str) and is_checksum(blob_id) else None,
        sha256=sha256 if isinstance(sha256, str) and len(sha256) == 64 and is_checksum(sha256) else None,
        in_xet=isinstance(entry.get("xetHash"), str),
    )


def _base_models(tags: Any) -> tuple[str, ...]:
    """Of tags like ``base_model:quantized:someone/model`` the ids."""
    texts = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    ids = [tag.rpartition(":")[2] for tag in texts if tag.startswith("base_model:")]
    return tuple(dict.fromkeys(one for one in ids if one.count("/") == 1 and is_plain_name(one)))


def _not_a_hub(what: str) -> RequestFailure:
    cause = f"{constants.ENDPOINT} answered something that {what}; it does not seem to be a Hub"
    return RequestFailure(Failure(cause=cause, passing=False), tries=1)

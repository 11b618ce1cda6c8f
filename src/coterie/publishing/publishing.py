"""Publishes a store: checks it, writes its card, uploads it, and compares what the Hub has then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Literal

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from coterie.checkpoint.hub.listing import Listing, is_plain_name
from coterie.errors import StoreBusyError, StoreError, UsageError
from coterie.extraction.progress import Meter, ProgressCallback
from coterie.files.regular import read_bounded
from coterie.origins.store_or_checkpoint import find_model
from coterie.origins.store_place import StorePlace
from coterie.publishing.card import has_grown, write_card
from coterie.publishing.uploading import Upload, Uploader
from coterie.store import Manifest, side_file_problem, verify_store
from coterie.store.manifest_file import load_manifest
from coterie.store.manifest_json import manifest_bytes
from coterie.store.names import CARD, FIT_FACTS, MANIFEST, MAX_SIDE_FILE_BYTES, is_dense_file, is_segment_file

_LARGEST_NBYTES = 50 * 10**9
"""Of one file; larger ones the Hub does not take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What was published, or would be.

    Attributes:
        schema_version: Version of this form.
        status: ``planned`` or ``published``; ``unchanged`` if the Hub had all of it.
        store: The store.
        repo_id: The repository.
        branch: The branch.
        commit: The commit that has it; None if it is only planned.
        files: Files of the repository → bytes, with the manifest and the card.
        nbytes: Bytes of all of them.
        sent_nbytes: Bytes of those that the branch did not have. What an interrupted run has uploaded counts, although
            it is not sent again.
        removed: Files of an earlier store that went.
        card: The model card, or None if that of the repository was kept.
        seconds: Time taken.
    """

    schema_version: int = 1
    status: Literal["planned", "published", "unchanged"]
    store: Path
    repo_id: str
    branch: str
    commit: str | None
    files: dict[str, int]
    nbytes: int
    sent_nbytes: int
    removed: tuple[str, ...]
    card: str | None
    seconds: float

    def to_json(self) -> dict[str, object]:
        """The report as JSON values."""
        return {**asdict(self), "store": str(self.store)}


def publish(
    store: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    message: str | None = None,
    base_model: str | None = None,
    keep_card: bool = False,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> Publication:
    """Uploads a store to a repository of the Hub, from which it is opened by its id.

    All checksums of the store are compared before. Files are uploaded one by one and become visible in one commit, so
    a repository never has half a store. After an interruption the same call goes on: what the Hub has is not sent
    again. The card of the repository, ``README.md``, is written; the published manifest does not name it, so that it
    can be edited on the Hub.

    Args:
        store: The store's directory, or its name.
        repo_id: The repository, such as ``org/name``. It is made if it is not there.
        private: Whether it is to be private. None: as it is, or private if it is new.
        branch: The branch; by default ``main``.
        message: Of the commit.
        base_model: Id of the repository with the checkpoint that the store was made from. By default the one that the
            store's manifest names.
        keep_card: Leave the card as it is on the Hub.
        dry_run: Check the store and write the card; ask the Hub for nothing.
        progress: Told about bytes and time left.

    Raises:
        UsageError: If it is no store on this machine, or the repository holds something else, or has no valid id.
        StoreError: If the store is damaged.
        StoreBusyError: If it is growing, or a growth was interrupted.
        PublishError: If the Hub cannot be reached, or does not take it.
    """
    start = monotonic()
    _check_ids(repo_id, base_model, branch)
    root = _local(store)
    manifest = _sound(root, progress)
    base_model = base_model or (manifest.source.name if manifest.source.revision is not None else None)
    # The figures of a fitted store that has grown since are those of another one.
    left_out = (CARD, FIT_FACTS) if has_grown(manifest) else (CARD,)
    published = replace(manifest, files=tuple(facts for facts in manifest.files if facts.file not in left_out))
    files = list(_store_files(root, published))
    card: str | None = None
    if not keep_card:
        has_card = any(facts.file == CARD for facts in manifest.files)
        own = read_bounded(root / CARD, MAX_SIDE_FILE_BYTES).decode("utf-8", "replace") if has_card else None
        size = sum(one.nbytes for one in files)
        card = write_card(manifest, own, repo_id, base_model=base_model, nbytes=size)
        files.append(Upload(name=CARD, content=card.encode(), nbytes=len(card.encode())))
    report = Publication(
        status="planned",
        store=root,
        repo_id=repo_id,
        branch=branch or constants.DEFAULT_REVISION,
        commit=None,
        files={one.name: one.nbytes for one in files},
        nbytes=sum(one.nbytes for one in files),
        sent_nbytes=0,
        removed=(),
        card=card,
        seconds=monotonic() - start,
    )
    if dry_run:
        return report
    uploader = Uploader(repo_id, report.branch)
    there = uploader.prepare(private=private)
    removed = _unwanted(there, report)
    missing = uploader.missing(files, there)
    sent = sum(one.nbytes for one in missing)
    meter = Meter("upload", sent, progress)
    commit = uploader.send(
        missing,
        removed,
        message=message or f"Store of {manifest.source.name}, made by Coterie",
        parent=there.commit,
        advance=meter.advance,
    )
    uploader.check(report.files, commit)
    return replace(
        report,
        status="unchanged" if commit == there.commit else "published",
        commit=commit,
        sent_nbytes=0 if commit == there.commit else sent,
        removed=tuple(removed),
        seconds=monotonic() - start,
    )


def _check_ids(repo_id: str, base_model: str | None, branch: str | None) -> None:
    for name in (repo_id, base_model):
        try:
            if name is not None:
                validate_repo_id(name)
        except HFValidationError as error:
            raise UsageError(f"{name!r} is no id of a repository: {error}", got=name) from error
    if "/" not in repo_id:
        raise UsageError(
            f"{repo_id!r} does not say whose repository it is.", advice=f"Write YOUR-NAME/{repo_id}.", got=repo_id
        )
    if branch is not None and not is_plain_name(branch):
        raise UsageError(f"{ascii(branch)[:80]} is no name of a branch.", got=branch)


def _local(store: str | Path) -> Path:
    """The directory of a store on this machine."""
    found = find_model(store)
    if not isinstance(found, StorePlace):
        raise UsageError(
            f"{store} is a checkpoint, and only stores are published.",
            advice="Make a store of it with 'coterie extract'; `hf upload` uploads a checkpoint.",
            path=store,
        )
    if found.repository is not None:
        raise UsageError(f"{store} is on the Hub already.", advice="Name a store on this machine.", path=store)
    return found.directory


def _sound(root: Path, progress: ProgressCallback | None) -> Manifest:
    """The manifest of a store that is whole and does not grow.

    Raises:
        StoreError: If it is damaged.
        StoreBusyError: If it is growing, or a growth was interrupted.
    """
    meter: Meter | None = None

    def checked(done: int, total: int) -> None:
        nonlocal meter
        meter = meter or Meter("checksums", total, progress)
        meter.reach(done)

    report = verify_store(root, progress=checked)
    if report.problems:
        first = report.problems[0]
        raise StoreError(
            f"{root} is damaged, and was not published: {first.file}, {first.place}: {first.message}"
            + (f" ({len(report.problems) - 1} more problems)." if len(report.problems) > 1 else "."),
            advice="Run 'coterie verify' on it, and extract it again.",
            path=root,
            problems=report.problems,
        )
    if report.leftovers:
        raise StoreBusyError(
            f"{root} is growing, or a growth of it was interrupted: {report.leftovers[0].file} is not part of it yet.",
            advice="Wait until it has finished. After an interruption run the same 'coterie extract' again.",
            path=root,
        )
    return load_manifest(root)[0]


def _store_files(root: Path, manifest: Manifest) -> Iterator[Upload]:
    for name, nbytes in sorted(manifest.file_sizes.items()):
        if nbytes > _LARGEST_NBYTES:
            raise UsageError(
                f"{name} has {nbytes:,} bytes; the Hub takes files of at most {_LARGEST_NBYTES:,}.",
                advice="Publish a store of fewer bits.",
                path=root / name,
            )
        yield Upload(name=name, content=root / name, nbytes=nbytes)
    data = manifest_bytes(manifest)
    yield Upload(name=MANIFEST, content=data, nbytes=len(data))


def _unwanted(there: Listing, report: Publication) -> list[str]:
    """Files of a store that the branch has and that are not of this one.

    Raises:
        UsageError: If the branch holds anything else than a store.
    """
    of_store = [name for name in there.files if is_segment_file(name) or is_dense_file(name)]
    for name in sorted(there.files):
        if name not in of_store and name != MANIFEST and not name.startswith(".") and side_file_problem(name):
            raise UsageError(
                f"{report.repo_id} holds something else than a store: {name}.",
                advice="Publish the store to a repository of its own, or to another --branch.",
                repo_id=report.repo_id,
            )
    return sorted(name for name in of_store if name not in report.files)

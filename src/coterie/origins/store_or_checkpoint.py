"""Is it a store or a checkpoint? Both can be verified and inspected."""

from __future__ import annotations

from pathlib import Path

from coterie.checkpoint import Location
from coterie.errors import UsageError
from coterie.files.naming import IN_PACKAGE, check_name, model_path
from coterie.files.other_programs import no_model
from coterie.origins.store_place import StorePlace
from coterie.records.remote import RateLimit
from coterie.store import Store, is_store, is_unfinished


def find_model(
    model: str | Path, *, revision: str | None = None, offline: bool = False, rate: RateLimit | None = None
) -> StorePlace | Location:
    """The store or the checkpoint that a name means. Of a Hub id the small files are downloaded, and no weights.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.
        rate: Holds back what is read of a repository. A store here may be one that fetches, and takes no notice.

    Raises:
        StoreNotFoundError: If it is a directory with an unfinished store, or with neither.
        UsageError: If a rate is to be held of a checkpoint directory.
        UsageError, UnsupportedError, CheckpointNotFoundError: If it is no name of a model, or of one in another format.
        CheckpointFileError: If a small file cannot be downloaded.
    """
    if model not in IN_PACKAGE:
        check_name(model)
        path = model_path(model)
        if is_store(path):
            _refuse_revision(path, revision)
            return StorePlace(directory=path.absolute(), name=path.absolute().name)
        if path.is_dir():
            if is_unfinished(path):
                Store.open(path)  # says so
            if not (path / "config.json").exists():
                raise no_model(path)
    location = Location.find(model, revision=revision, offline=offline, rate=rate)
    if location.holds_store:
        return StorePlace(directory=location.directory, name=location.name, repository=location.repository)
    return location


def need_checkpoint(checkpoint: str | Path, advice: str) -> None:
    """Refuses a store where a checkpoint is needed.

    Args:
        checkpoint: Directory, name or Hub id.
        advice: What to do instead.

    Raises:
        UsageError: If it is a store.
    """
    if is_store(model_path(checkpoint)):
        raise UsageError(f"{checkpoint} is a store, and a checkpoint is needed here.", advice=advice, path=checkpoint)


def _refuse_revision(store: Path, revision: str | None) -> None:
    if revision is not None:
        raise UsageError(
            f"{store.name} is a store: only repositories of the Hub have revisions.",
            advice="Leave the revision out.",
            revision=revision,
        )

"""Finds a checkpoint: a directory, or a repository of the Hub of which only what is needed is downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from coterie.checkpoint.headers import TensorInfo, read_header
from coterie.checkpoint.hub import Repository, find_repository
from coterie.checkpoint.weight_files import (
    WeightFiles,
    check_weight_map,
    is_index,
    no_weights,
    read_index,
    refuse_distributed,
    weights_name,
)
from coterie.errors import CheckpointFileError, CoterieError, UsageError
from coterie.files.naming import check_name, model_path
from coterie.records.remote import RangeReader, RateLimit


@dataclass(slots=True, kw_only=True)
class Location:
    """Where a checkpoint's files are.

    Attributes:
        directory: Local directory with the configuration; for a Hub repository, its snapshot in the cache.
        name: The directory's name or the repository id, for messages and manifests.
        revision: Commit of the repository, or None for a directory.
        offline: Nothing may be downloaded.
        repository: The repository on the Hub, or None for a directory.
        reader: Reads shards of the repository that are not here by ranges; None if they are downloaded first.
    """

    directory: Path
    name: str
    revision: str | None = None
    offline: bool = False
    repository: Repository | None = field(default=None, repr=False)
    reader: RangeReader | None = field(default=None, repr=False)

    @classmethod
    def find(
        cls,
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        offline: bool = False,
        reader: RangeReader | None = None,
        rate: RateLimit | None = None,
    ) -> Location:
        """Finds a local directory, or a Hub repository whose small files are downloaded to the Hub's cache.

        Args:
            path_or_id: Directory, or Hub id.
            revision: Branch, tag or commit of a Hub repository.
            offline: Use only what is on this machine.
            reader: Reads shards of the repository that are not here by ranges; None if they are downloaded first.
            rate: Holds back what is read of a repository; best that of the reader.

        Raises:
            CheckpointNotFoundError: If there is neither.
            CheckpointFileError: If a small file cannot be downloaded.
            UnsupportedError: If the weights of a repository are in a format that is not read.
            UsageError: If it is named in another way, or a directory with a revision or a rate.
        """
        check_name(path_or_id)
        directory, text = model_path(path_or_id), str(path_or_id)
        if directory.is_dir():
            if revision is not None:
                raise UsageError(
                    f"{text!r} is a directory: only repositories of the Hub have revisions.",
                    advice="Leave the revision out.",
                    revision=revision,
                )
            if rate is not None:
                raise nothing_to_limit(text)
            return cls(directory=directory.resolve(), name=directory.resolve().name, offline=offline)
        repository = find_repository(text, revision=revision, offline=offline, rate=rate)
        return cls(
            directory=repository.directory,
            name=text,
            revision=repository.commit,
            offline=offline,
            repository=repository,
            reader=None if repository.listing is None else reader,
        )

    @property
    def repo_id(self) -> str | None:
        """Id of the repository on the Hub, or None for a directory."""
        return None if self.repository is None else self.repository.repo_id

    @property
    def cache(self) -> Path | None:
        """The Hub's cache, to which shards are downloaded, or None for a directory."""
        return None if self.repository is None else self.repository.cache.root

    @property
    def holds_store(self) -> bool:
        """Whether it is a repository with a store, and not with a checkpoint."""
        return self.repository is not None and self.repository.holds_store

    def weight_files(self, named: object = None) -> WeightFiles:
        """Which files are the weights.

        Args:
            named: What the model's configuration says under ``transformers_weights``.

        Raises:
            CheckpointFileError, UnsupportedError: If there are none that can be opened.
        """
        refuse_distributed(self.directory, self._files())
        name = weights_name(named, self.directory / "config.json", self._has)
        if name is None:
            raise self._no_weights()
        return read_index(self.directory / name, name) if is_index(name) else WeightFiles(shards=(name,))

    def refuse_store(self) -> None:
        """Refuses a repository with a store before more is read of it.

        Raises:
            UnsupportedError: If it is one.
        """
        if self.holds_store:
            raise self._no_weights()

    def tensors(self, files: WeightFiles | None = None) -> dict[str, TensorInfo]:
        """Every tensor of the checkpoint, without downloading any shard.

        Args:
            files: From :meth:`weight_files`.

        Raises:
            CheckpointFileError: If a file is missing or malformed, or index and files disagree.
        """
        files = files or self.weight_files()
        tensors = self._headers(files.shards)
        check_weight_map(files, self.directory, tensors)
        return tensors

    def missing_shards(self, paths: Iterable[Path]) -> list[Path]:
        """Those of the tensors' files that are not on this machine yet."""
        if self.repository is None:
            return sorted({path for path in paths if not path.exists()})
        return sorted({path for path in paths if not self.repository.is_here(self._name_of(path))})

    def download_nbytes(self, paths: Iterable[Path]) -> dict[Path, int]:
        """The bytes that are still to be downloaded of each file that is not on this machine yet."""
        missing = self.missing_shards(paths)
        if self.repository is None:
            return dict.fromkeys(missing, 0)
        sizes = self.repository.download_nbytes(map(self._name_of, missing))
        return {path: sizes[self._name_of(path)] for path in missing}

    def download(self, paths: Iterable[Path]) -> None:
        """Downloads the shards that are not here yet, with bars of progress; each is compared with the Hub's checksum.

        A shard that an earlier run was stopped in goes on where it was.

        Raises:
            CheckpointFileError: If a shard is missing and cannot be downloaded.
            DiskSpaceError: If the disk of the Hub's cache has no room.
        """
        missing = self.missing_shards(paths)
        if self.repository is not None:
            self.repository.download(map(self._name_of, missing))
        elif missing:
            raise CheckpointFileError(f"{missing[0]} is not here.", advice="Copy the missing shard.", path=missing[0])

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self.directory).as_posix()

    def _has(self, file: str) -> bool:
        return (self.directory / file).is_file() if self.repository is None else self.repository.has(file)

    def _headers(self, files: Iterable[str]) -> dict[str, TensorInfo]:
        """The tensors of these files; over the network for those that are not here."""
        tensors: dict[str, TensorInfo] = {}
        absent = [] if self.repository is None else [file for file in files if not self.repository.is_here(file)]
        remote = self.repository.headers(absent, self.reader) if self.repository is not None and absent else {}
        for file in files:
            tensors.update(remote[file] if file in remote else read_header(self.directory / file))
        return tensors

    def _no_weights(self) -> CoterieError:
        listing = None if self.repository is None else self.repository.listing
        models = () if listing is None else listing.base_models
        return no_weights(self.name, self.directory, self._files(), base_models=models)

    def _files(self) -> list[str]:
        if self.repository is not None:
            return self.repository.file_names()
        try:
            return sorted(path.name for path in self.directory.iterdir())
        except OSError as error:
            raise CheckpointFileError(
                f"{self.directory} cannot be listed: {error.strerror}.",
                advice="Check its permissions.",
                path=self.directory,
            ) from error


def nothing_to_limit(model: str | Path) -> UsageError:
    """The error for a limited rate where all that is read is on this machine."""
    return UsageError(
        f"{str(model)!r} is on this machine: nothing of it is read over the network, so that no rate can be limited.",
        advice="Leave max_rate out.",
        path=model,
    )

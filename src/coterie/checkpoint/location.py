"""Finds a checkpoint: a directory, or a repository of the Hub of which only what is needed is downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from coterie.checkpoint.headers import TensorInfo, read_header
from coterie.errors import CheckpointFileError, CheckpointNotFoundError, UnsupportedError, UsageError
from coterie.files.naming import is_hub_id, resolve_path, unknown_model

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "tokenizer*", "LICENSE*", "NOTICE*", "README.md")


@dataclass(slots=True, kw_only=True)
class Location:
    """Where a checkpoint's files are.

    Attributes:
        directory: Local directory with the configuration; for a Hub repository, its snapshot in the cache.
        name: The directory's name or the repository id, for messages and manifests.
        repo_id: Repository on the Hub, or None for a directory.
        revision: Commit of the repository, or None for a directory.
        offline: Nothing may be downloaded.
    """

    directory: Path
    name: str
    repo_id: str | None = None
    revision: str | None = None
    offline: bool = False
    _shards: dict[str, str] | None = field(default=None, repr=False)

    @classmethod
    def find(cls, path_or_id: str | Path, *, revision: str | None = None, offline: bool = False) -> Location:
        """Finds a local directory, or a Hub repository whose small files are downloaded to the Hub's cache.

        Raises:
            CheckpointNotFoundError: If there is neither.
            UsageError: If a revision of a local directory is asked for.
        """
        directory, text = Path(resolve_path(path_or_id)), str(path_or_id)
        if directory.is_dir():
            if revision is not None:
                raise UsageError(
                    f"{text!r} is a directory: only repositories of the Hub have revisions.",
                    advice="Leave the revision out.",
                    revision=revision,
                )
            return cls(directory=directory.resolve(), name=directory.resolve().name, offline=offline)
        if not is_hub_id(text):
            raise unknown_model(text)
        try:
            snapshot = snapshot_download(
                text, revision=revision, allow_patterns=list(_SIDE_FILES), local_files_only=offline
            )
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise CheckpointNotFoundError(
                f"{text!r} is neither a directory here nor a repository of the Hub that you can read: {error}",
                advice="Check the name and the revision; for a gated model run `hf auth login`.",
                repo_id=text,
                revision=revision,
            ) from error
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
            raise CheckpointNotFoundError(
                f"{text!r} is not a directory here, and the Hub could not be asked ({type(error).__name__}).",
                advice="Check the path, or the network; with --offline only what is in the Hub's cache is used.",
                repo_id=text,
            ) from error
        path = Path(snapshot)
        return cls(directory=path, name=text, repo_id=text, revision=path.name, offline=offline)

    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor of the checkpoint, without downloading any shard.

        Raises:
            CheckpointFileError: If a file is missing or malformed, or index and files disagree.
        """
        shards = self._weight_map()
        if shards is None:
            return self._header_of(_SINGLE) if self._has(_SINGLE) or self.repo_id else self._no_weights()
        tensors: dict[str, TensorInfo] = {}
        remote: dict[str, TensorInfo] | None = None
        for shard in sorted(set(shards.values())):
            if self._has(shard) or not self.repo_id:
                tensors.update(self._header_of(shard))
            else:
                remote = self._remote_headers() if remote is None else remote
                tensors.update({n: t for n, t in remote.items() if t.path.name == shard})
        for name, shard in shards.items():
            if name not in tensors or tensors[name].path.name != Path(shard).name:
                raise CheckpointFileError(
                    f"{_INDEX} says that {name!r} is in {shard}, which does not have it.",
                    advice="The shards and the index are of different downloads; download both again.",
                    path=self.directory / _INDEX,
                    tensor=name,
                )
        extra = sorted(set(tensors) - set(shards))
        if extra:
            raise CheckpointFileError(
                f"{tensors[extra[0]].path} has a tensor {extra[0]!r} that {_INDEX} does not list.",
                advice="The shards and the index are of different downloads; download both again.",
                path=tensors[extra[0]].path,
                tensor=extra[0],
            )
        return tensors

    def missing_shards(self, paths: Iterable[Path]) -> list[Path]:
        """Those of the tensors' files that are not on this machine yet."""
        return sorted({p for p in paths if not p.exists()})

    def download(self, paths: Iterable[Path]) -> None:
        """Downloads the shards that are not here yet; the Hub's client shows progress and resumes.

        Raises:
            CheckpointFileError: If a shard is missing and cannot be downloaded.
        """
        for path in self.missing_shards(paths):
            if self.repo_id is None or self.offline:
                raise CheckpointFileError(
                    f"{path} is not here and nothing may be downloaded.",
                    advice="Run again without --offline." if self.offline else "Copy the missing shard.",
                    path=path,
                )
            try:
                hf_hub_download(self.repo_id, path.name, revision=self.revision)
            except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
                raise CheckpointFileError(
                    f"{path.name} of {self.repo_id} could not be downloaded: {error}",
                    advice="Run the command again: it goes on where it stopped.",
                    path=path,
                ) from error

    def _has(self, file: str) -> bool:
        return (self.directory / file).exists()

    def _weight_map(self) -> dict[str, str] | None:
        if self._shards is None and self._has(_INDEX):
            path = self.directory / _INDEX
            try:
                shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
                names_ok = all(isinstance(k, str) and isinstance(v, str) for k, v in shards.items())
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise CheckpointFileError(
                    f"{path} is not a valid index ({error}).", advice="Download it again.", path=path
                ) from error
            bad = [v for v in shards.values() if not isinstance(v, str) or Path(v).name != v]
            if not names_ok or bad:
                raise CheckpointFileError(
                    f"{path} names a file outside the checkpoint: {bad[:1]}.", advice="Download it again.", path=path
                )
            self._shards = shards
        return self._shards

    def _header_of(self, file: str) -> dict[str, TensorInfo]:
        path = self.directory / file
        if not path.exists() and self.repo_id:
            cached = try_to_load_from_cache(self.repo_id, file, revision=self.revision)
            if not isinstance(cached, str):
                return self._remote_headers()
        return read_header(path)

    def _remote_headers(self) -> dict[str, TensorInfo]:
        """Reads the headers of all shards over the network: a few requests of some kilobytes."""
        if self.offline or self.repo_id is None:
            raise CheckpointFileError(
                f"Not all shards of {self.name} are in the Hub's cache.", advice="Run again without --offline."
            )
        try:
            metadata = HfApi().get_safetensors_metadata(self.repo_id, revision=self.revision)
        except NotASafetensorsRepoError:
            self._no_weights()
        except (HfHubHTTPError, OSError) as error:
            raise CheckpointFileError(
                f"The headers of {self.repo_id} could not be read: {error}", advice="Try again.", repo_id=self.repo_id
            ) from error
        tensors: dict[str, TensorInfo] = {}
        for file, header in metadata.files_metadata.items():
            for name, info in header.tensors.items():
                begin, end = info.data_offsets
                # The offset within the file is only known once the shard is here; it is read again then.
                tensors[name] = TensorInfo(
                    name=name,
                    path=self.directory / file,
                    dtype=info.dtype,
                    shape=tuple(info.shape),
                    offset=begin,
                    nbytes=end - begin,
                )
        return tensors

    def _no_weights(self) -> dict[str, TensorInfo]:
        pickles = sorted(p.name for p in self.directory.glob("*.bin")) if self.directory.is_dir() else []
        if pickles:
            raise UnsupportedError(
                f"{self.name} has its weights in {pickles[0]}, a pickle, which is never opened.",
                advice="Convert it to safetensors with transformers' save_pretrained.",
                path=self.directory,
            )
        raise CheckpointFileError(
            f"{self.name} has neither {_SINGLE} nor {_INDEX}.",
            advice="Pass a checkpoint in safetensors format.",
            path=self.directory,
        )

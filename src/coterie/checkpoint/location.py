"""Finds a checkpoint: a directory, or a repository of the Hub of which only what is needed is downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
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
from coterie.checkpoint.naming import check_name
from coterie.checkpoint.weight_files import (
    SINGLE,
    WeightFiles,
    check_weight_map,
    is_index,
    no_weights,
    read_index,
    refuse_distributed,
    weights_name,
)
from coterie.errors import CheckpointFileError, CheckpointNotFoundError, CoterieError, UsageError

_SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "tokenizer*", "LICENSE*", "NOTICE*", "README.md")

BUNDLED = "bundled"
"""The name under which the checkpoint in the package is opened; a directory of that name is ``./bundled``."""


def resolve_path(path: str | Path) -> str | Path:
    """Replaces the name ``bundled`` by the directory in the package; leaves everything else as it is."""
    # Only the bare text: Path("./bundled") is the same path as Path("bundled"), and means the directory.
    return Path(__file__).parents[1] / BUNDLED if path == BUNDLED else path


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

    @classmethod
    def find(cls, path_or_id: str | Path, *, revision: str | None = None, offline: bool = False) -> Location:
        """Finds a local directory, or a Hub repository whose small files are downloaded to the Hub's cache.

        Raises:
            CheckpointNotFoundError: If there is neither.
            UsageError, UnsupportedError: If it is named in another way, or a directory with a revision.
        """
        check_name(path_or_id)
        directory, text = Path(resolve_path(path_or_id)), str(path_or_id)
        if directory.is_dir():
            if revision is not None:
                raise UsageError(
                    f"{text!r} is a directory: only repositories of the Hub have revisions.",
                    advice="Leave the revision out.",
                    revision=revision,
                )
            return cls(directory=directory.resolve(), name=directory.resolve().name, offline=offline)
        if text.startswith((".", "/", "~")) or text.count("/") != 1:
            raise CheckpointNotFoundError(
                f"There is no directory {text!r}.", advice="Pass a directory, or a Hub id like 'Qwen/Qwen3-30B-A3B'."
            )
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
            if self.repo_id is None:
                raise self._no_weights()
            name = SINGLE
        return read_index(self.directory / name, name) if is_index(name) else WeightFiles(shards=(name,))

    def tensors(self, files: WeightFiles | None = None) -> dict[str, TensorInfo]:
        """Every tensor of the checkpoint, without downloading any shard.

        Args:
            files: From :meth:`weight_files`.

        Raises:
            CheckpointFileError: If a file is missing or malformed, or index and files disagree.
        """
        files = files or self.weight_files()
        tensors: dict[str, TensorInfo] = {}
        remote: dict[str, TensorInfo] | None = None
        for shard in files.shards:
            if self._has(shard) or not self.repo_id:
                tensors.update(read_header(self.directory / shard))
            else:
                remote = self._remote_headers() if remote is None else remote
                tensors.update({n: t for n, t in remote.items() if t.path == self.directory / shard})
        check_weight_map(files, self.directory, tensors)
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
        return (self.directory / file).is_file()

    def _remote_headers(self) -> dict[str, TensorInfo]:
        """Reads the headers of all shards over the network: a few requests of some kilobytes."""
        if self.offline or self.repo_id is None:
            raise CheckpointFileError(
                f"Not all shards of {self.name} are in the Hub's cache.", advice="Run again without --offline."
            )
        try:
            metadata = HfApi().get_safetensors_metadata(self.repo_id, revision=self.revision)
        except NotASafetensorsRepoError:
            raise self._no_weights() from None
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

    def _no_weights(self) -> CoterieError:
        return no_weights(self.name, self.directory, self._files())

    def _files(self) -> list[str]:
        try:
            return sorted(path.name for path in self.directory.iterdir())
        except OSError as error:
            raise CheckpointFileError(
                f"{self.directory} cannot be listed: {error.strerror}.",
                advice="Check its permissions.",
                path=self.directory,
            ) from error

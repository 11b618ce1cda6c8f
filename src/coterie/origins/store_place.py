"""A store that a name means: in a directory, or in a repository of the Hub, of which tensors come when it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from coterie.checkpoint import TensorInfo
from coterie.checkpoint.hub import Repository
from coterie.errors import ChecksumError, StoreError
from coterie.origins.hub_segments import HubSegment, sparse_file
from coterie.origins.stored_dense import dense_headers
from coterie.records.remote import RangeReader
from coterie.store import Manifest, Segment, Store
from coterie.store.manifest_file import check_file, load_manifest
from coterie.store.whole_files import check_records, check_whole


@dataclass(frozen=True, kw_only=True)
class StorePlace:
    """Where a store is.

    Attributes:
        directory: The store; of a repository, its snapshot in the Hub's cache.
        name: What people call it: the directory's name, or the Hub id.
        repository: The repository on the Hub, or None.
    """

    directory: Path
    name: str
    repository: Repository | None = None

    @cached_property
    def manifest(self) -> Manifest:
        """What it says about itself. Of a repository, all files beside the tensors are here afterwards.

        Raises:
            StoreError: If it is damaged, or the repository does not have what the manifest names.
            CheckpointFileError: If a file cannot be downloaded.
        """
        manifest, _ = load_manifest(self.directory)
        if self.repository is not None:
            _check_listing(self.repository, manifest)
            self.repository.download(facts.file for facts in manifest.files)
        return manifest

    def __str__(self) -> str:
        """The Hub id, or the directory."""
        return str(self.directory) if self.repository is None else self.name

    def open(self, *, experts: bool = True) -> Store:
        """Opens it. Of a repository, downloads what is not here, and compares it with the manifest's checksums.

        Args:
            experts: Whether experts will be read, too; if not, their files are not downloaded.

        Raises:
            StoreError: As :meth:`coterie.store.Store.open`.
            ChecksumError: If a file was published damaged. It is removed from the Hub's cache then.
            CheckpointFileError: If a file cannot be downloaded.
            DiskSpaceError: If the disk of the Hub's cache has no room.
        """
        for name in self.download(experts=experts):
            self._check(name)
        return self.look()

    def download(self, *, experts: bool = True) -> list[str]:
        """Downloads what is not here, as :meth:`open` does; returns the names of these files, which are not compared.

        Raises:
            StoreError, CheckpointFileError, DiskSpaceError: As :meth:`open`.
        """
        if self.repository is None:
            return []
        whole = {facts.file for facts in self.manifest.whole_files}
        missing = [name for name in self._missing() if experts or name in whole]
        if self.repository.listing is not None:
            self._complete(self.repository, [name for name in missing if name not in whole])
        self.repository.download(missing)
        return missing

    def segments(self, store: Store, reader: RangeReader) -> dict[str, HubSegment]:
        """Files of experts that are not here whole, by name: to be read by ranges.

        Args:
            store: From :meth:`open`, without experts.
            reader: Reads them.
        """
        if self.repository is None:
            return {}
        asks = None if self.repository.listing is None else reader
        return {
            name: HubSegment(self.repository, segment, asks)
            for name, segment in _segments(store.manifest).items()
            if name not in store.stamps
        }

    def _complete(self, repository: Repository, names: list[str]) -> None:
        """Completes files of which experts were fetched before, so that no byte comes twice."""
        begun = [one for name, one in _segments(self.manifest).items() if name in names]
        begun = [one for one in begun if sparse_file(repository, one).list.exists()]
        if not begun:
            return
        repository.cache.check_fits(sum(one.nbytes for one in begun))
        reader = RangeReader(rate=repository.rate)
        try:
            for one in begun:
                HubSegment(repository, one, reader).complete()
        except OSError as error:
            raise repository.cache.explained(error) from error
        finally:
            reader.stop()

    def look(self) -> Store:
        """Opens it without downloading tensors: of a repository, only files that are here already can be read.

        Raises:
            StoreError, CheckpointFileError: As :meth:`open`.
        """
        return Store.open(self.directory, elsewhere=self._missing())

    def headers(self, store: Store) -> dict[str, TensorInfo]:
        """Its tensors outside experts, by name; over the network of files that are not here.

        Args:
            store: From :meth:`look`.

        Raises:
            CheckpointFileError: If a header cannot be read, or is none.
        """
        absent = {facts.file for facts in store.manifest.dense} - store.stamps.keys()
        remote = self.repository.headers(absent) if self.repository is not None and absent else {}
        return dense_headers(store, remote)

    def download_nbytes(self) -> int:
        """Bytes that are still to be downloaded before it can be opened."""
        if self.repository is None:
            return 0
        return sum(self.repository.download_nbytes(self._missing()).values())

    def _missing(self) -> list[str]:
        if self.repository is None:
            return []
        return [name for name in self.manifest.file_sizes if not self.repository.is_here(name)]

    def _check(self, name: str) -> None:
        """Compares a file that has just come with the manifest, whose checksums are those of whoever published it."""
        stamp = check_file(self.directory, name, self.manifest.file_sizes[name])
        whole = {facts.file: facts for facts in self.manifest.whole_files}
        segments = _segments(self.manifest)
        try:
            if name in whole:
                check_whole(self.directory, whole[name], stamp)
            else:
                check_records(self.directory, segments[name], stamp)
        except ChecksumError as error:
            assert self.repository is not None
            self.repository.cache.remove(self.directory / name)
            raise ChecksumError(
                f"{name} of {self.name} is as the Hub has it, and not what the store's manifest says: {error.message}",
                advice="The store was published damaged; tell its owner, or choose another --revision.",
                **error.facts,
            ) from error


def _segments(manifest: Manifest) -> dict[str, Segment]:
    return {segment.file: segment for bank in manifest.banks for segment in bank.segments}


def _check_listing(repository: Repository, manifest: Manifest) -> None:
    """Finds out what a repository lacks before anything large is downloaded.

    Raises:
        StoreError: If a file is not there, or has another size than the manifest says.
    """
    if repository.listing is None:
        return
    for name, nbytes in manifest.file_sizes.items():
        listed = repository.listing.files.get(name)
        if listed is None or listed.nbytes != nbytes:
            what = "is not there" if listed is None else f"has {listed.nbytes:,} bytes instead of {nbytes:,}"
            raise StoreError(
                f"The store {repository.repo_id} at {repository.commit[:12]} is not whole: {name} {what}.",
                advice="Tell its owner, or choose another --revision.",
                path=repository.directory / name,
                repo_id=repository.repo_id,
            )

"""An opened store: where every expert is, without having read any of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from coterie.errors import ExpertMissingError, ReadError, UsageError
from coterie.records import LocalFile, read_range
from coterie.records.files import first_changed
from coterie.spec import BankKey, ExpertKey, Extent, FileStamp, RecordLayout
from coterie.store import names
from coterie.store.manifest import Bank, Manifest, Record
from coterie.store.manifest_file import check_file, load_manifest
from coterie.store.whole_files import check_whole


class Store:
    """A finished store; an :class:`coterie.spec.ExpertSource`. Immutable, safe to use from several threads.

    Opening reads the manifest, looks at the files and compares those beside the weights with their checksums. No tensor
    bytes and no tensor file's header are read: everything needed to read an expert is in the manifest. What was
    looked at is what is read later: a file that was replaced or written to since is an error.

    Attributes:
        path: The directory.
        manifest: What it says about itself.
        stamps: What each file was when the store was opened, by relative name.
    """

    def __init__(self, path: Path, manifest: Manifest, stamps: Mapping[str, FileStamp] | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.stamps = stamps or {}
        files = {segment.file: self.file(segment.file) for bank in manifest.banks for segment in bank.segments}
        self._extents = {
            key: Extent(source=files[segment.file], offset=record.offset, nbytes=record.nbytes)
            for key, (segment, record) in manifest.places.items()
        }

    @classmethod
    def open(cls, path: Path | str, *, elsewhere: Collection[str] = ()) -> Store:
        """Opens the store at ``path``.

        Args:
            path: The directory.
            elsewhere: Tensor files that are not here yet: they are not looked at, and cannot be read.

        Raises:
            StoreNotFoundError: If there is no store, or only an unfinished one; says what is there instead.
            StoreFormatError: If the manifest breaks a rule, or a file is missing, a link, or of another size.
            ChecksumError: If a configuration, a tokenizer or another file beside the weights differs from its checksum.
            ReadError: If such a file cannot be read.
        """
        root = Path(path).absolute()
        manifest, _ = load_manifest(root)
        here = {file: nbytes for file, nbytes in manifest.file_sizes.items() if file not in elsewhere}
        stamps = {file: check_file(root, file, nbytes) for file, nbytes in here.items()}
        for facts in manifest.files:
            check_whole(root, facts, stamps[facts.file])
        return cls(root, manifest, stamps)

    def check_unchanged(self) -> None:
        """Checks that the files beside the weights are still those that were compared with their checksums.

        Whoever has others read them, by their names, calls this afterwards.

        Raises:
            ReadError: If one was replaced or written to.
        """
        before = {self.path / facts.file: self.stamps[facts.file] for facts in self.manifest.files if self.stamps}
        changed = first_changed(before)
        if changed is not None:
            raise ReadError(
                f"{changed} was replaced or written to while the store was being opened.",
                advice="Open it again when nobody writes to it.",
                path=changed,
            )

    def file(self, name: str) -> LocalFile:
        """One of its files, as it was when the store was opened."""
        return LocalFile(self.path / name, self.stamps.get(name))

    @property
    def banks(self) -> Mapping[BankKey, Bank]:
        """All banks of the model (or component), also those without any expert present."""
        return self.manifest.banks_by_key

    @property
    def dense_files(self) -> tuple[Path, ...]:
        """The safetensors files with everything that is not an expert."""
        return tuple(self.path / facts.file for facts in self.manifest.dense)

    @property
    def dense_index(self) -> Path | None:
        """The index of the dense files, if there are several."""
        return None if self.manifest.dense_index is None else self.path / names.DENSE_INDEX

    def keys(self) -> Collection[ExpertKey]:
        """The experts that are present, in ascending order of bank."""
        return self._extents.keys()

    def record(self, key: ExpertKey) -> Record:
        """What the manifest says about one expert.

        Raises:
            ExpertMissingError: If it is not in the store.
        """
        try:
            return self.manifest.places[key][1]
        except KeyError:
            raise self._missing(key) from None

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of this expert's record."""
        return self.manifest.layouts[self.record(key).layout]

    def scheme(self, key: ExpertKey) -> str:
        """The scheme of this expert: ``native``, ``int8``, ``int4``, ..."""
        return self.record(key).scheme

    def extents(self, key: ExpertKey) -> tuple[Extent, ...]:
        """The one extent of this expert: file offset and length are multiples of 4096."""
        try:
            return (self._extents[key],)
        except KeyError:
            raise self._missing(key) from None

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """Reads a record through the page cache; returns the bytes read.

        Raises:
            ExpertMissingError: If it is not in the store.
            ReadError: If the file cannot be read or has become shorter.
            UsageError: If the buffer has another size than the record.
        """
        (extent,) = self.extents(key)
        view = record.cast("B")
        if len(view) != extent.nbytes:
            raise UsageError(f"A buffer of {extent.nbytes} bytes is needed for {key}, not {len(view)}.")
        try:
            done = read_range(extent.source, extent.offset, view)
        except OSError as error:
            place = extent.source.place
            raise ReadError(f"{place} cannot be read: {error.strerror}.", path=place, key=key) from error
        if done < len(view):
            raise ReadError(
                f"{extent.source.place} ends within the record of {key}: {done} of {len(view)} bytes.",
                advice="Run 'coterie verify' on the store.",
                path=extent.source.place,
                key=key,
                expected=len(view),
                got=done,
            )
        return done

    def checksum(self, key: ExpertKey) -> str:
        """xxh3-128 of the record as 32 hex digits."""
        return self.record(key).checksum

    def _missing(self, key: ExpertKey) -> ExpertMissingError:
        return ExpertMissingError(
            f"Expert {key} is not in the store {self.path}.",
            advice="Add it with 'coterie extract', or choose what is done about absent experts with 'missing'.",
            key=key,
            path=self.path,
        )

"""An opened store: where every expert is, without having read any of them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from coterie.errors import ExpertMissingError, ReadError, UsageError
from coterie.spec import BankKey, ExpertKey, Extent, RecordLayout
from coterie.store import names
from coterie.store.manifest import Bank, Manifest, Record
from coterie.store.manifest_file import check_file, load_manifest


class Store:
    """A finished store; an :class:`coterie.spec.ExpertSource`. Immutable, safe to use from several threads.

    Opening reads the manifest and the sizes of the files, no tensor bytes and no tensor file's header: everything
    needed to read an expert is in the manifest. Headers and checksums are the business of ``verify_store``.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._extents = {
            key: Extent(path=path / segment.file, offset=record.offset, nbytes=record.nbytes)
            for key, (segment, record) in manifest.places.items()
        }

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Opens the store at ``path``.

        Raises:
            StoreNotFoundError: If there is no store, or only an unfinished one; says what is there instead.
            StoreFormatError: If the manifest breaks a rule, or a file is missing, a link, or of another size.
        """
        root = Path(path).absolute()
        manifest, _ = load_manifest(root)
        for file, nbytes in manifest.file_sizes.items():
            problem = check_file(root, file, nbytes)
            if problem is not None:
                raise problem
        return cls(root, manifest)

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
            with extent.path.open("rb", buffering=0) as file:
                file.seek(extent.offset)
                done = 0
                while done < len(view):
                    got = file.readinto(view[done:])
                    if not got:
                        break
                    done += got
                if hasattr(os, "posix_fadvise"):
                    # The record lives in the caller's memory now; a second copy in the page cache only costs.
                    os.posix_fadvise(file.fileno(), extent.offset, extent.nbytes, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise ReadError(f"{extent.path} cannot be read: {error.strerror}.", path=extent.path, key=key) from error
        if done < len(view):
            raise ReadError(
                f"{extent.path} ends within the record of {key}: {done} of {len(view)} bytes.",
                advice="Run 'coterie verify' on the store.",
                path=extent.path,
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

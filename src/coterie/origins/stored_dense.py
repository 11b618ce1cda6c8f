"""The dense files of a store: where each tensor lies, and that their bytes are those that the manifest vouches for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from coterie.checkpoint import TensorInfo, WholeFile, read_header
from coterie.errors import ReadError
from coterie.quant import Scheme, linear_names, lossy_scheme
from coterie.spec.dense_schemes import DenseSchemes
from coterie.store import Store


@dataclass(frozen=True, slots=True)
class StoredLinear:
    """The weight of a linear layer that a store has in a scheme.

    Attributes:
        scheme: The scheme.
        codes: Where its codes are.
        scales: Where its scales are.
    """

    scheme: Scheme
    codes: TensorInfo
    scales: TensorInfo

    @property
    def tensors(self) -> tuple[TensorInfo, TensorInfo]:
        """Codes and scales."""
        return self.codes, self.scales

    @property
    def nbytes(self) -> int:
        """Bytes in memory, and in the file."""
        return self.codes.nbytes + self.scales.nbytes


def stored_linears(tensors: Mapping[str, TensorInfo], schemes: DenseSchemes) -> dict[str, StoredLinear]:
    """The weights that are in a scheme among a store's dense tensors, by name.

    Of a weight that is there in two schemes, one is found: nothing claims the tensors of the other.

    Args:
        tensors: Dense tensors by name.
        schemes: Those of the manifest.

    Raises:
        UsageError: If there is no such scheme.
    """
    found: dict[str, StoredLinear] = {}
    for name in schemes.lossy:
        scheme = lossy_scheme(name)
        if scheme is not None:
            for weight, (codes, scales) in linear_names(tensors, scheme).items():
                found[weight] = StoredLinear(scheme, tensors[codes], tensors[scales])
    return dict(sorted(found.items()))


def dense_headers(
    store: Store, elsewhere: Mapping[str, Mapping[str, TensorInfo]] = MappingProxyType({})
) -> dict[str, TensorInfo]:
    """Everything that is not an expert, by name; only headers are read, nothing is compared with a checksum.

    Args:
        store: The store.
        elsewhere: Of dense files that are not here, what their headers say, by file.

    Raises:
        CheckpointFileError: If a header is not one.
        ReadError: If a file is not the one that the store was opened with.
    """
    found: dict[str, TensorInfo] = {}
    for facts in store.manifest.dense:
        path = store.path / facts.file
        if facts.file in elsewhere:
            found.update(elsewhere[facts.file])
            continue
        tensors = read_header(path)
        stamp = store.stamps.get(facts.file)
        for info in tensors.values():
            if stamp is not None and info.stamp is not None and info.stamp != stamp:
                raise ReadError(f"{path} {stamp.change(info.stamp)}.", advice="Open the model again.", path=path)
        found.update(tensors)
    return found


def checked_tensors(
    store: Store, tensors: dict[str, TensorInfo], wanted: Callable[[str], bool]
) -> tuple[dict[str, TensorInfo], tuple[WholeFile, ...]]:
    """Tensors whose files are compared with their checksums before any of them is handed out.

    Args:
        store: The store.
        tensors: From :func:`dense_headers`.
        wanted: Which of them, by name, will be read.

    Returns:
        Those that are wanted, and the files, which keep what was read until it is asked for.
    """
    files = {file.path: file for file in dense_files(store)}
    chosen = {name: replace(info, keeper=files[info.path]) for name, info in tensors.items() if wanted(name)}
    for info in chosen.values():
        files[info.path].want(info)
    return chosen, tuple(files.values())


def dense_files(store: Store) -> tuple[WholeFile, ...]:
    """The files, each with the checksum and the stamp that it has to have; nothing is read yet."""
    return tuple(
        WholeFile(
            store.path / facts.file,
            nbytes=facts.nbytes,
            checksum=facts.checksum,
            stamp=store.stamps.get(facts.file),
        )
        for facts in store.manifest.dense
    )

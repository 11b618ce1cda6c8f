"""A checkpoint as what a store is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from coterie.checkpoint import Checkpoint, Location, PackedWeight, TensorInfo
from coterie.hf.configs import read_config
from coterie.hf.quantisation import Quantisation, without_quantisation
from coterie.origins.cut import Cut
from coterie.origins.origin import OriginBank, OriginModel
from coterie.origins.packed_dense import PackedDense
from coterie.origins.side_files import as_file, side_files, with_dtype
from coterie.origins.stored_dense import StoredLinear
from coterie.quant.packed import Rounded
from coterie.records.remote import RangeReader
from coterie.records.remote.ahead import Range
from coterie.spec import BankKey, ExpertKey, Extent, RecordLayout
from coterie.spec.dense_schemes import DenseSchemes


class CheckpointOrigin:
    """An :class:`~coterie.origins.Origin` whose tensors, those of experts too, lie as they were published.

    Args:
        checkpoint: The checkpoint.
    """

    made_from = ""
    calibration = None
    allocation = None
    cuts: Mapping[str, Cut] = MappingProxyType({})

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.linears: Mapping[str, StoredLinear] = {}
        self.model = OriginModel(
            name=checkpoint.location.name,
            revision=checkpoint.location.revision,
            component=checkpoint.component,
            model_type=checkpoint.model_type,
            config=checkpoint.config,
            skeleton=checkpoint.skeleton,
            banks={key: OriginBank(bank=one.bank, layout=one.layout) for key, one in checkpoint.banks.items()},
            keymap=checkpoint.keymap,
        )

    @classmethod
    def open(
        cls,
        path_or_id: str | Path | Location,
        *,
        component: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        reader: RangeReader | None = None,
    ) -> CheckpointOrigin:
        """Opens a checkpoint. Arguments and errors are those of :meth:`Checkpoint.open`."""
        found = Checkpoint.open(path_or_id, component=component, revision=revision, offline=offline, reader=reader)
        return cls(found)

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return self._checkpoint.location.directory

    @property
    def identity(self) -> str:
        """Fingerprint of the model."""
        return self._checkpoint.identity

    @property
    def dense_schemes(self) -> DenseSchemes:
        """Those that take packed weights outside experts as they are; native for the rest."""
        return self.packed_dense.schemes

    @property
    def packed(self) -> Mapping[str, PackedWeight]:
        """Packed weights by the names that they would have if they were not."""
        return self._checkpoint.packed

    @cached_property
    def packed_dense(self) -> PackedDense:
        """What becomes of those outside experts."""
        return PackedDense.of(self.model.skeleton, self.model.keymap, self._checkpoint.packed)

    @property
    def rounded(self) -> Rounded:
        """What was rounded so far of packed weights that were read into schemes."""
        return self._checkpoint.rounded.total

    def stored_names(self, names: Iterable[str]) -> list[str]:
        """See :class:`~coterie.origins.Origin`."""
        return self._checkpoint.stored_names(names)

    @property
    def integrity(self) -> str:
        """Fingerprint of the checkpoint."""
        return self._checkpoint.integrity

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        return self._checkpoint.tensors

    @property
    def quantisation(self) -> Quantisation | None:
        """How its weights are quantised, or None."""
        return self._checkpoint.quantisation

    def scheme(self, key: ExpertKey) -> str:
        """As they were published: native, or the scheme that takes packed weights as they are."""
        return self._checkpoint.banks[key.bank_key].scheme

    def errors(self, key: ExpertKey) -> None:
        """None: they are what errors are measured against."""

    def sources(self, bank: BankKey) -> tuple[str, ...]:
        """The tensors that a bank comes from, with ``*`` for the expert's number."""
        fields = self._checkpoint.banks[bank].fields
        return tuple(
            pattern for field in fields.values() for names in field.names.values() for pattern in _pattern(names)
        )

    def side_files(self) -> Mapping[str, Path]:
        """See :class:`~coterie.origins.Origin`."""
        return side_files(self.directory)

    def changed_files(self) -> Mapping[str, bytes]:
        """A configuration that says nothing of the dtype, which it says then, or that says how weights are packed."""
        raw = read_config(self.directory)
        quantisation = self.quantisation
        packed = quantisation is not None and quantisation.packings is not None
        plain = without_quantisation(raw) if packed else raw
        config = with_dtype(plain, lambda: self._checkpoint.unstated_dtype)
        if config is None and packed:
            config = as_file(plain)
        return {} if config is None else {"config.json": config}

    def names_of(self, key: ExpertKey) -> list[str]:
        """The tensors that hold an expert."""
        return self._checkpoint.names_of(key)

    @property
    def cache(self) -> Path | None:
        """The Hub's cache, if it comes from there."""
        return self._checkpoint.location.cache

    def missing(self, names: Iterable[str]) -> Mapping[Path, int]:
        """See :class:`~coterie.origins.Origin`."""
        return self._checkpoint.location.download_nbytes(self._checkpoint.to_download(names))

    def download(self, names: Iterable[str]) -> None:
        """See :class:`~coterie.origins.Origin`."""
        self._checkpoint.download(names)

    @property
    def reader(self) -> RangeReader | None:
        """See :class:`~coterie.origins.Origin`."""
        return self._checkpoint.reader

    def ranges(self, names: Iterable[str]) -> list[Range]:
        """See :class:`~coterie.origins.Origin`."""
        return self._checkpoint.ranges(names)

    def warn_left_out(self) -> None:
        """Of tensors of other parts, and of an adapter."""
        self._checkpoint.warn_left_out()

    # --- ExpertSource -------------------------------------------------------------------------------------------

    def keys(self) -> Collection[ExpertKey]:
        """All experts of the model."""
        return self._checkpoint.keys()

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of this expert's record in the checkpoint's own dtype."""
        return self._checkpoint.layout(key)

    def extents(self, key: ExpertKey) -> tuple[Extent, ...] | None:
        """Where the expert's bytes lie, or None if transformers transposes or interleaves them on loading."""
        return self._checkpoint.extents(key)

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """Decodes an expert; returns the bytes read."""
        return self._checkpoint.read_into(key, record)

    def checksum(self, key: ExpertKey) -> None:
        """None: checkpoints carry no checksums."""


def _pattern(names: list[str]) -> Iterable[str]:
    if len(names) == 1:
        return names
    parts = [name.split(".") for name in names]
    differing = [index for index, part in enumerate(zip(*parts, strict=True)) if len(set(part)) > 1]
    if len(differing) != 1:
        return names
    first = parts[0]
    first[differing[0]] = "*"
    return [".".join(first)]

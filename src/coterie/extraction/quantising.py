"""A checkpoint's experts as records of a scheme: quantised while they are read, one at a time."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from coterie.cache import RecordReader
from coterie.checkpoint import Checkpoint, CheckpointBank
from coterie.errors import QuantisationError
from coterie.hf.dtypes import TORCH_DTYPES
from coterie.hf.quantised import FieldSteps, plan_fields
from coterie.quant import NATIVE, Scheme, StoredMatrix, lossy_scheme
from coterie.spec import BankKey, ExpertKey, Extent, RecordLayout

if TYPE_CHECKING:
    from coterie.store import Store

SchemeOf = Callable[[ExpertKey], str]
"""The scheme in which an expert is wanted."""


def record_layouts(checkpoint: Checkpoint, scheme: str = NATIVE) -> dict[BankKey, RecordLayout]:
    """The record layout of every bank in a scheme, each name standing for one layout.

    Components of one model have experts of different sizes in the same arrangement; the second and further sizes are
    numbered, in ascending order of bank, whatever is selected: a store that grows meets the same names again.

    Raises:
        UsageError: If there is no such scheme.
    """
    lossy = lossy_scheme(scheme)
    numbered: dict[str, list[RecordLayout]] = {}
    layouts: dict[BankKey, RecordLayout] = {}
    for key in sorted(checkpoint.banks):
        bank = checkpoint.banks[key]
        layout = bank.layout if lossy is None else BankQuantiser.of(bank, lossy).layout
        known = numbered.setdefault(layout.name, [])
        if layout not in known:
            known.append(layout)
        number = known.index(layout)
        layouts[key] = layout if number == 0 else replace(layout, name=f"{layout.name};{number + 1}")
    return layouts


def scheme_of_store(store: Store) -> str | None:
    """The scheme of a store's experts; None if they are of several, or there are none."""
    schemes = {record.scheme for bank in store.manifest.banks for record in bank.records.values()}
    return schemes.pop() if len(schemes) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BankQuantiser:
    """Makes records of a scheme out of the records of a checkpoint's bank.

    Attributes:
        layout: Layout of what is made.
        native: Layout of what it is made of.
        steps: How each parameter comes out of the native record.
        dtypes: Dtype of each parameter in the model.
        matrices: The parameters that are quantised; the others (biases) stay as they are.
    """

    layout: RecordLayout
    native: RecordLayout
    steps: tuple[FieldSteps, ...]
    dtypes: Mapping[str, torch.dtype]
    matrices: Mapping[str, StoredMatrix] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint_bank: CheckpointBank, scheme: Scheme) -> BankQuantiser:
        """For one bank."""
        bank, native = checkpoint_bank.bank, checkpoint_bank.layout
        transposed = "transposed" in bank.variant
        steps = plan_fields(native, bank.parameters, str(bank.key))
        matrices = {
            name: StoredMatrix(parameter=name, shape=shape, scheme=scheme, transposed=transposed)
            for name, shape in bank.parameters.items()
            if len(shape) == 2
        }
        fields: list[tuple[str, str, tuple[int, ...]]] = []
        for step in steps:
            place = native.fields[step.position]
            matrix = matrices.get(step.parameter)
            fields += [(place.name, place.dtype, place.shape)] if matrix is None else matrix.fields()
        short = "|".join(name.replace("_proj", "") for name in bank.parameters)
        name = ";".join(filter(None, (short, bank.variant, scheme.name)))
        return cls(
            layout=RecordLayout.build(name, fields),
            native=native,
            steps=steps,
            dtypes=bank.dtypes,
            matrices=matrices,
        )

    def quantise(self, key: ExpertKey, native: memoryview, record: memoryview) -> None:
        """Fills the fields of ``record`` from a native record.

        Raises:
            QuantisationError: If a weight is not finite; names expert and parameter.
        """
        tensors = tuple(
            torch.frombuffer(native, dtype=torch.uint8, count=place.nbytes, offset=place.offset)
            .view(TORCH_DTYPES[place.dtype])
            .view(place.shape)
            for place in self.native.fields
        )
        places = iter(self.layout.fields)
        for step in self.steps:
            matrix = self.matrices.get(step.parameter)
            if matrix is None:
                parts: tuple[torch.Tensor, ...] = (tensors[step.position],)
            else:
                parts = self._parts(key, matrix, step.decode(tensors, self.dtypes[step.parameter]))
            for part in parts:
                place = next(places)
                record[place.offset : place.offset + place.nbytes] = part.view(-1).view(torch.uint8).numpy().data

    def _parts(self, key: ExpertKey, matrix: StoredMatrix, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        try:
            return matrix.quantise(value)
        except QuantisationError as error:
            raise QuantisationError(
                f"Expert {key}, {matrix.parameter}: {error.message}",
                advice=error.advice,
                key=key,
                tensor=matrix.parameter,
                **error.facts,
            ) from error


class SchemedExperts:
    """The experts of a checkpoint, each in a scheme of its own; an :class:`~coterie.spec.ExpertSource`.

    Args:
        checkpoint: Where they come from.
        scheme_of: The scheme of each.
    """

    def __init__(self, checkpoint: Checkpoint, scheme_of: SchemeOf) -> None:
        self._checkpoint = checkpoint
        self._scheme_of = scheme_of
        self._reader = RecordReader(checkpoint)
        self._layouts: dict[str, dict[BankKey, RecordLayout]] = {}
        self._quantisers: dict[tuple[BankKey, str], BankQuantiser] = {}

    def close(self) -> None:
        """Closes the open files."""
        self._reader.close()

    # --- ExpertSource -------------------------------------------------------------------------------------------

    def keys(self) -> Collection[ExpertKey]:
        """All experts of the checkpoint."""
        return self._checkpoint.keys()

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of this expert's record in its scheme."""
        scheme = self._scheme_of(key)
        if scheme not in self._layouts:
            self._layouts[scheme] = record_layouts(self._checkpoint, scheme)
        return self._layouts[scheme][key.bank_key]

    def extents(self, key: ExpertKey) -> tuple[Extent, ...] | None:
        """Where the checkpoint has the record's bytes; None if they must be computed."""
        return self._checkpoint.extents(key) if self._scheme_of(key) == NATIVE else None

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """Reads and quantises an expert; returns the bytes read.

        Raises:
            QuantisationError: If a weight is not finite.
            CheckpointFileError: If the expert cannot be decoded.
            ReadError: If a file cannot be read.
        """
        scheme = lossy_scheme(self._scheme_of(key))
        if scheme is None:
            return self._checkpoint.read_into(key, record)
        place = key.bank_key, scheme.name
        if place not in self._quantisers:
            self._quantisers[place] = BankQuantiser.of(self._checkpoint.banks[key.bank_key], scheme)
        quantiser = self._quantisers[place]
        buffer = mmap.mmap(-1, quantiser.native.nbytes)
        try:
            native = memoryview(buffer)
            nbytes = self._reader.read(key, quantiser.native, native)
            quantiser.quantise(key, native, record)
        finally:
            with suppress(BufferError):
                # Tensors may still view it; it goes with the last of them.
                buffer.close()
        return nbytes

    def checksum(self, key: ExpertKey) -> str | None:
        """None: checkpoints carry no checksums."""
        return None

"""Experts of a checkpoint, or of a store, as records of a scheme: quantised while they are read, one at a time."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from coterie.errors import QuantisationError, UsageError
from coterie.extraction.calibrating import Calibrator, record_errors
from coterie.hf.banks import ExpertBank
from coterie.origins import Origin
from coterie.quant import StoredMatrix, dequantise, lossy_scheme
from coterie.quant.calibrated import MatrixError
from coterie.quant.dtypes import record_tensors, tensor_bytes
from coterie.quant.scheme import Scheme
from coterie.records import RecordReader
from coterie.spec import BankKey, ExpertKey, Extent, RecordLayout
from coterie.spec.encodings import NATIVE, SCHEME_FORMATS, matrix_schemes, schemes_named
from coterie.spec.parameters import StoredParameter, plan_record
from coterie.spec.scheme_names import check_made_here, check_scheme

if TYPE_CHECKING:
    from coterie.store import Manifest, RecordErrors

SchemeOf = Callable[[ExpertKey], str]
"""The scheme in which an expert is wanted."""


def record_layouts(origin: Origin, scheme: str = NATIVE) -> dict[BankKey, RecordLayout]:
    """The record layout of every bank in a scheme, each name standing for one layout.

    Components of one model have experts of different sizes in the same arrangement; the second and further sizes are
    numbered, in ascending order of bank, whatever is selected: a store that grows meets the same names again.

    Raises:
        UsageError: If there is no such scheme.
    """
    numbered: dict[str, list[RecordLayout]] = {}
    layouts: dict[BankKey, RecordLayout] = {}
    for key in sorted(origin.model.banks):
        bank = origin.model.banks[key]
        layout = bank.layout if scheme == NATIVE else BankQuantiser.of(bank.bank, bank.layout, scheme).layout
        known = numbered.setdefault(layout.name, [])
        if layout not in known:
            known.append(layout)
        number = known.index(layout)
        layouts[key] = layout if number == 0 else replace(layout, name=f"{layout.name};{number + 1}")
    return layouts


def matrix_names(bank: ExpertBank) -> tuple[str, ...]:
    """The parameters of a bank's experts that may be in a scheme, in order."""
    return tuple(name for name, shape in bank.parameters.items() if len(shape) == 2)


def stored_matrix(bank: ExpertBank, name: str, scheme: Scheme) -> StoredMatrix:
    """One of these parameters, as experts of the bank have it in a scheme."""
    transposed = "transposed" in bank.variant
    return StoredMatrix(parameter=name, shape=bank.parameters[name], scheme=scheme, transposed=transposed)


def one_scheme(scheme: str | SchemeOf) -> SchemeOf:
    """The scheme of each expert, where all have the same or each its own."""
    return (lambda key: scheme) if isinstance(scheme, str) else scheme


def check_smaller(what: str, have: str, want: str) -> None:
    """Refuses a scheme that has more bits than what there is: it would be larger, and no better.

    Raises:
        UsageError: With both.
    """
    for scheme in schemes_named(have) | schemes_named(want):
        check_scheme(scheme)
    count = max(one.count("+") for one in (have, want)) + 1
    pairs = zip(matrix_schemes(have, count), matrix_schemes(want, count), strict=True)
    if any(_bits(new) > _bits(old) for old, new in pairs):
        raise UsageError(
            f"{what} stored as {have}; as {want} they would be larger and no better.",
            advice="Make the store from the checkpoint, or from a store that is still native.",
            have=have,
            want=want,
        )


def _bits(scheme: str) -> float:
    return math.inf if scheme == NATIVE else SCHEME_FORMATS[scheme].bits


def scheme_of_store(manifest: Manifest) -> str | None:
    """The scheme of a store's experts; None if they are of several, or there are none."""
    schemes = {record.scheme for bank in manifest.banks for record in bank.records.values()}
    return schemes.pop() if len(schemes) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BankQuantiser:
    """Makes records of a scheme out of a bank's records in another form.

    Attributes:
        layout: Layout of what is made.
        stored: Layout of what it is made of.
        parameters: How the stored record has each parameter.
        dtypes: Dtype of each parameter in the model.
        matrices: The parameters that are quantised; the others, such as biases, stay as they are.
    """

    layout: RecordLayout
    stored: RecordLayout
    parameters: Mapping[str, StoredParameter]
    dtypes: Mapping[str, torch.dtype]
    matrices: Mapping[str, StoredMatrix] = field(default_factory=dict)

    @classmethod
    def of(cls, bank: ExpertBank, stored: RecordLayout, scheme: str) -> BankQuantiser:
        """For the records of one layout of a bank.

        Args:
            bank: The bank.
            stored: The layout.
            scheme: One for all matrices, or one for each, joined by ``+``. What is in its scheme already, or is to be
                native, stays as it is.

        Raises:
            UsageError: If there is no such scheme, or nothing is quantised to it.
        """
        parameters = plan_record(stored, bank.parameters, str(bank.key))
        names = matrix_names(bank)
        try:
            wanted = dict(zip(names, map(lossy_scheme, matrix_schemes(scheme, len(names))), strict=True))
        except ValueError as error:
            raise UsageError(f"{bank.key}: {error}.", scheme=scheme) from None
        matrices = {
            name: stored_matrix(bank, name, one)
            for name, one in wanted.items()
            if one is not None and parameters[name].encoding is not one.form
        }
        for quantised in matrices.values():
            check_made_here(quantised.scheme.name)
        fields: list[tuple[str, str, tuple[int, ...]]] = []
        for name in bank.parameters:
            matrix = matrices.get(name)
            if matrix is None:
                places = (stored.fields[position] for position in parameters[name].positions)
                fields += [(place.name, place.dtype, place.shape) for place in places]
            else:
                fields += matrix.fields()
        short = "|".join(name.replace("_proj", "") for name in bank.parameters)
        name = ";".join(filter(None, (short, bank.variant, scheme)))
        return cls(
            layout=RecordLayout.build(name, fields),
            stored=stored,
            parameters=parameters,
            dtypes=bank.dtypes,
            matrices=matrices,
        )

    def quantise(
        self, key: ExpertKey, stored: memoryview, record: memoryview, calibrator: Calibrator | None = None
    ) -> dict[str, MatrixError]:
        """Fills the fields of ``record`` from a stored one.

        Args:
            key: The expert.
            stored: The record that there is.
            record: The one to be filled.
            calibrator: Chooses the codes; None to round to nearest.

        Returns:
            What each matrix whose codes the calibrator chose is off by, by name.

        Raises:
            QuantisationError: If a weight is not finite; names expert and parameter.
        """
        tensors = record_tensors(stored, self.stored)
        places = iter(self.layout.fields)
        errors: dict[str, MatrixError] = {}
        for name in self.dtypes:
            chosen = None
            if calibrator is not None and name in self.matrices:
                chosen = calibrator.chosen(key, name)
            if chosen is None:
                parts = self._fields(key, name, tensors)
            else:
                parts, errors[name] = chosen
            for part in parts:
                place = next(places)
                record[place.offset : place.offset + place.nbytes] = tensor_bytes(part)
        return errors

    def _fields(self, key: ExpertKey, name: str, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What is stored of one parameter, rounded to nearest where it is quantised."""
        matrix = self.matrices.get(name)
        if matrix is None:
            return tuple(tensors[position] for position in self.parameters[name].positions)
        with naming_matrix(key, name):
            return matrix.quantise(self._weights(name, tensors))

    def _weights(self, name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return dequantise(self.parameters[name], tensors, self.dtypes[name])

    def weights(self, stored: memoryview) -> dict[str, tuple[StoredMatrix, torch.Tensor]]:
        """The matrices of a stored record that are to be quantised, by name, with the weights that the model has."""
        tensors = record_tensors(stored, self.stored)
        return {name: (matrix, self._weights(name, tensors).clone()) for name, matrix in self.matrices.items()}


@contextmanager
def naming_matrix(key: ExpertKey, parameter: str) -> Iterator[None]:
    """An error of quantisation inside names an expert and a parameter."""
    try:
        yield
    except QuantisationError as error:
        raise QuantisationError(
            f"Expert {key}, {parameter}: {error.message}",
            advice=error.advice,
            key=key,
            tensor=parameter,
            **error.facts,
        ) from error


class SchemedExperts:
    """Experts, each in a scheme of its own; an :class:`~coterie.spec.ExpertSource`.

    What lies in the scheme already is given as it lies.

    Args:
        origin: Where they come from.
        scheme_of: The scheme of each.
        calibrator: Chooses the codes of those that are quantised; None to round to nearest.
    """

    def __init__(self, origin: Origin, scheme_of: SchemeOf, calibrator: Calibrator | None = None) -> None:
        self._origin = origin
        self._calibrator = calibrator
        self._errors: dict[ExpertKey, RecordErrors] = {}
        self._scheme_of = scheme_of
        self._reader = RecordReader(origin, verify=True)
        self._layouts: dict[str, dict[BankKey, RecordLayout]] = {}
        self._quantisers: dict[tuple[BankKey, str, RecordLayout], BankQuantiser] = {}

    def close(self) -> None:
        """Closes the open files."""
        self._reader.close()

    # --- ExpertSource -------------------------------------------------------------------------------------------

    def keys(self) -> Collection[ExpertKey]:
        """All experts of the origin."""
        return self._origin.keys()

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of this expert's record in its scheme."""
        scheme = self._scheme_of(key)
        if scheme != NATIVE and self.is_there(key):
            return self._origin.layout(key)
        if scheme not in self._layouts:
            self._layouts[scheme] = record_layouts(self._origin, scheme)
        return self._layouts[scheme][key.bank_key]

    def extents(self, key: ExpertKey) -> tuple[Extent, ...] | None:
        """Where the origin has the record's bytes; None if they must be computed."""
        return self._origin.extents(key) if self.is_there(key) else None

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """Reads and quantises an expert; returns the bytes read.

        Raises:
            QuantisationError: If a weight is not finite.
            CheckpointFileError: If the expert cannot be decoded.
            ReadError: If a file cannot be read.
        """
        if self.is_there(key):
            return self._origin.read_into(key, record)
        with self._stored(key) as (quantiser, view, nbytes):
            errors = quantiser.quantise(key, view, record, self._calibrator)
            if errors:
                self._errors[key] = record_errors(errors)
        return nbytes

    def weights(self, key: ExpertKey) -> dict[str, tuple[StoredMatrix, torch.Tensor]]:
        """The matrices of an expert that are to be quantised, by name, with the weights that the model has.

        Raises:
            CheckpointFileError: If the expert cannot be decoded.
            ReadError: If a file cannot be read.
        """
        with self._stored(key) as (quantiser, view, _):
            return quantiser.weights(view)

    @contextmanager
    def _stored(self, key: ExpertKey) -> Iterator[tuple[BankQuantiser, memoryview, int]]:
        """Who quantises an expert, its record as it is stored, and how many bytes were read."""
        scheme = self._scheme_of(key)
        assert scheme != NATIVE, "what is native is there"
        stored = self._origin.layout(key)
        place = key.bank_key, scheme, stored
        if place not in self._quantisers:
            self._quantisers[place] = BankQuantiser.of(self._origin.model.banks[key.bank_key].bank, stored, scheme)
        buffer = mmap.mmap(-1, stored.nbytes)
        try:
            view = memoryview(buffer)
            yield self._quantisers[place], view, self._reader.read(key, stored, view)
        finally:
            with suppress(BufferError):
                # Tensors may still view it; it goes with the last of them.
                buffer.close()

    def checksum(self, key: ExpertKey) -> str | None:
        """That of a store's record which is given as it lies; checkpoints carry none."""
        return self._origin.checksum(key) if self.is_there(key) else None

    def take_errors(self, key: ExpertKey) -> RecordErrors | None:
        """What an expert that was read is off by, if its codes were chosen by calibration, here or before; once."""
        return self._origin.errors(key) if self.is_there(key) else self._errors.pop(key, None)

    def is_there(self, key: ExpertKey) -> bool:
        """Whether it lies in its scheme already."""
        return self._scheme_of(key) == self._origin.scheme(key)

"""The experts of one bank whose weights are packed, as records of the scheme that takes them as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.checkpoint.packed import PackedWeight
from coterie.errors import CheckpointFileError, UnsupportedError
from coterie.hf.banks import ExpertBank
from coterie.hf.keymap import FieldSource
from coterie.quant import SCHEMES, StoredMatrix
from coterie.quant.dtypes import tensor_bytes
from coterie.spec import RecordLayout
from coterie.spec.encodings import NATIVE, record_scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBank:
    """The packed parameters of a bank.

    Attributes:
        bank: The bank.
        sources: Name of each parameter that is packed → where its experts' weights come from.
        matrices: The same parameters, as their scheme stores them.
        weights: All packed weights of the checkpoint by name.
    """

    bank: ExpertBank
    sources: Mapping[str, FieldSource]
    matrices: Mapping[str, StoredMatrix]
    weights: Mapping[str, PackedWeight]

    @classmethod
    def of(
        cls, bank: ExpertBank, fields: Mapping[str, FieldSource], weights: Mapping[str, PackedWeight]
    ) -> PackedBank | None:
        """Finds the packed parameters of a bank; None if it has none.

        Args:
            bank: The bank.
            fields: Name of each parameter → where it comes from.
            weights: All packed weights of the checkpoint by name.

        Raises:
            CheckpointFileError: If a weight has another shape than the model's.
            UnsupportedError: If no scheme takes a weight as it is, or weights of one parameter need several.
        """
        sources = {name: source for name, source in fields.items() if _names(source)[0] in weights}
        if not sources:
            return None
        matrices = {name: _matrix(bank, name, source, weights) for name, source in sources.items()}
        return cls(bank=bank, sources=sources, matrices=matrices, weights=weights)

    @property
    def scheme(self) -> str:
        """The scheme of a record: one for all of its matrices, or one for each."""
        matrices = (name for name, shape in self.bank.parameters.items() if len(shape) == 2)
        return record_scheme(
            [self.matrices[name].scheme.name if name in self.matrices else NATIVE for name in matrices]
        )

    def layout(self, dtypes: Mapping[str, str]) -> RecordLayout:
        """The layout of a record.

        Args:
            dtypes: Dtype of each parameter that is not packed, by name.
        """
        fields: list[tuple[str, str, tuple[int, ...]]] = []
        for name, shape in self.bank.parameters.items():
            fields += self.matrices[name].fields() if name in self.matrices else [(name, dtypes[name], shape)]
        return self.bank.schemed_layout(fields, self.scheme)

    def read_into(self, expert: int, layout: RecordLayout, record: memoryview) -> None:
        """Fills the fields of the packed parameters.

        Args:
            expert: Which expert.
            layout: The record's.
            record: The record.

        Raises:
            CheckpointFileError: If a weight cannot be read or unpacked.
        """
        places = {field.name: field for field in layout.fields}
        for name, source in self.sources.items():
            starts = [places[field].offset for field, _, _ in self.matrices[name].fields()]
            for weight in source.names_of(expert):
                for parts in self.weights[weight].parts():
                    for number, part in enumerate(parts):
                        data = tensor_bytes(part)
                        record[starts[number] : starts[number] + len(data)] = data
                        starts[number] += len(data)


def _names(source: FieldSource) -> list[str]:
    return [name for group in source.names.values() for name in group]


def _matrix(bank: ExpertBank, parameter: str, source: FieldSource, weights: Mapping[str, PackedWeight]) -> StoredMatrix:
    """How a parameter is stored, which all of its experts have alike."""
    first = weights[_names(source)[0]]
    shape = bank.parameters[parameter]
    if "transposed" in bank.variant:
        raise UnsupportedError(
            f"The experts of {bank.path} are packed, and transformers holds them transposed, which is not supported.",
            advice="Use the model's original checkpoint.",
            tensor=first.name,
        )
    for expert in range(bank.num_experts):
        pieces = [weights[name] for name in source.names_of(expert)]
        shapes = [piece.shape for piece in pieces]
        if (sum(rows for rows, _ in shapes), *{columns for _, columns in shapes}) != shape:
            raise CheckpointFileError(
                f"{' and '.join(f'{one.name} {list(one.shape)}' for one in pieces)} do not fit {source.target}: the "
                f"model needs {list(shape)}.",
                advice="config.json and the weights do not belong together.",
                tensor=pieces[0].name,
                expected=shape,
                got=shapes[0],
            )
        other = next((piece for piece in pieces if piece.scheme != first.scheme), None)
        if other is not None:
            raise UnsupportedError(
                f"{first.name!r} is stored as {first.scheme}, and {other.name!r} of the same layer as {other.scheme}.",
                advice="Use a release in which all experts of a layer are quantised alike.",
                tensor=other.name,
            )
    return StoredMatrix(parameter=parameter, shape=shape, scheme=SCHEMES[first.scheme], transposed=False)

"""Between cache and kernel: from the fields of a record to the parameters that the model computes with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from coterie.cache import Tensors
from coterie.hf.banks import ExpertBank
from coterie.quant import dequantise
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.spec import BankKey, ExpertKey, ExpertSource, RecordLayout
from coterie.spec.parameters import plan_record


class FieldDecoder:
    """Decodes the records of one layout.

    Args:
        layout: The layout.
        bank: The bank; its parameters and their dtypes are the result, in that order.

    Attributes:
        layout: The layout.
        changes: Whether anything is to be done; if not, a record's tensors are the parameters.
        parameters: By name, how the record has each.

    Raises:
        LoadError: If the record's fields do not make the bank's parameters.
    """

    def __init__(self, layout: RecordLayout, bank: ExpertBank) -> None:
        self.layout = layout
        self.parameters = plan_record(layout, bank.parameters, str(bank.key))
        self._dtypes = tuple(bank.dtypes.values())
        self._stored = tuple(self.parameters.values())
        self.changes = any(
            stored.encoding is not None
            or stored.positions != (index,)
            or TORCH_DTYPES[layout.fields[index].dtype] != dtype
            for index, (stored, dtype) in enumerate(zip(self._stored, self._dtypes, strict=True))
        )

    def __call__(self, tensors: Tensors) -> Tensors:
        """The parameters of one expert: views of the record where it has them, else fresh tensors."""
        return tuple(
            dequantise(stored, tensors, dtype) for stored, dtype in zip(self._stored, self._dtypes, strict=True)
        )


class BankDecoder:
    """Decodes the experts of one bank, which need not all be stored alike.

    Args:
        bank: The bank.
        source: Where the experts come from.
        keys: Those of the bank's experts that are known to be there.

    Raises:
        LoadError: If the fields of some of them do not make the bank's parameters.
    """

    def __init__(self, bank: ExpertBank, source: ExpertSource, keys: Iterable[ExpertKey]) -> None:
        self._bank = bank
        self._source = source
        self._by_layout: dict[RecordLayout, FieldDecoder] = {}
        self._by_expert: dict[int, FieldDecoder] = {key.expert: self._decoder(source.layout(key)) for key in keys}
        self.changes = any(decoder.changes for decoder in self._by_layout.values())

    def __call__(self, key: ExpertKey, tensors: Tensors) -> Tensors:
        """The parameters of an expert, given the fields of its record."""
        if not self.changes:
            return tensors
        decoder = self.of(key)
        return decoder(tensors) if decoder.changes else tensors

    def of(self, key: ExpertKey) -> FieldDecoder:
        """The decoder of one expert's record."""
        decoder = self._by_expert.get(key.expert)
        if decoder is None:
            # The source has grown.
            decoder = self._by_expert[key.expert] = self._decoder(self._source.layout(key))
        return decoder

    @property
    def decoders(self) -> Iterable[FieldDecoder]:
        """Of all layouts that were met so far."""
        return self._by_layout.values()

    def each(self, experts: Iterable[tuple[ExpertKey, Tensors]]) -> Iterator[tuple[ExpertKey, Tensors]]:
        """The same experts in the same order, each decoded when it is asked for."""
        for key, tensors in experts:
            yield key, self(key, tensors)

    def _decoder(self, layout: RecordLayout) -> FieldDecoder:
        if layout not in self._by_layout:
            self._by_layout[layout] = FieldDecoder(layout, self._bank)
        return self._by_layout[layout]


def bank_decoders(banks: Mapping[BankKey, ExpertBank], source: ExpertSource) -> dict[BankKey, BankDecoder]:
    """A decoder for each bank, checked against every expert that the source has now.

    Raises:
        LoadError: If a record's fields do not make the module's parameters.
    """
    keys: dict[BankKey, list[ExpertKey]] = {key: [] for key in banks}
    for key in source.keys():
        if key.bank_key in keys:
            keys[key.bank_key].append(key)
    return {key: BankDecoder(bank, source, keys[key]) for key, bank in banks.items()}

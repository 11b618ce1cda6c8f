"""The experts of a store as the tensors of a checkpoint, their bytes read record by record."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from coterie.errors import UnsupportedError
from coterie.hf.decoding import is_plain
from coterie.hf.encoding import encode_field
from coterie.hf.keymap import FieldSource, KeyMap
from coterie.origins import OriginBank, StoreOrigin
from coterie.quant import dequantise
from coterie.quant.dtypes import SAFETENSORS_DTYPES, TORCH_DTYPES, record_tensors, tensor_bytes
from coterie.records import RecordReader
from coterie.spec import BankKey, ExpertKey, Field, RecordLayout
from coterie.spec.encodings import NATIVE, schemes_named
from coterie.spec.parameters import plan_record
from coterie.store import DenseTensor

Fields = Mapping[str, torch.Tensor]
"""The fields of one expert by name."""


class ExpertFields:
    """Reads the fields of experts one expert at a time, dequantised where a scheme of ours has them.

    Args:
        origin: The store.
    """

    def __init__(self, origin: StoreOrigin) -> None:
        self._origin = origin
        self._reader = RecordReader(origin, verify=True)
        self._last: tuple[ExpertKey, Fields] | None = None
        self._layouts: dict[BankKey, RecordLayout] = {}

    def close(self) -> None:
        """Closes the open files."""
        self._last = None
        self._reader.close()

    def _lossy(self, key: ExpertKey) -> bool:
        """Whether a matrix of an expert is in a scheme."""
        return bool(schemes_named(self._origin.scheme(key)) - {NATIVE})

    def layout(self, bank: OriginBank) -> RecordLayout:
        """The layout of a bank's fields as the checkpoint has them.

        Where some records of a bank are dequantised and others are as the original had them, a field gets the dtype
        that holds both without loss.
        """
        found = self._layouts.get(bank.bank.key)
        if found is None:
            found = self._layouts[bank.bank.key] = self._layout(bank)
        return found

    def _layout(self, bank: OriginBank) -> RecordLayout:
        keys = [bank.bank.key.expert(expert) for expert in range(bank.bank.num_experts)]
        if not any(map(self._lossy, keys)):
            return self._origin.layout(keys[0])
        dtypes: dict[str, torch.dtype] = {}
        for stored in {self._origin.layout(key) for key in keys}:
            plain = {place.name: TORCH_DTYPES[place.dtype] for place in stored.fields}
            for name, one in plan_record(stored, bank.bank.parameters, str(bank.bank.key)).items():
                dtype = plain[name] if one.encoding is None else self._origin.model.dtype
                dtypes[name] = torch.promote_types(dtypes.get(name, dtype), dtype)
        return bank.bank.layout({name: SAFETENSORS_DTYPES[dtype] for name, dtype in dtypes.items()})

    def of(self, key: ExpertKey) -> Fields:
        """The fields of an expert; compared with the record's checksum. Those of the last one are kept.

        Raises:
            ChecksumError: If the record is damaged.
            ReadError: If it cannot be read.
        """
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        layout = self._origin.layout(key)
        # Anonymous mappings start on a page, as direct reads need. It goes with the last tensor that views it.
        buffer = mmap.mmap(-1, layout.nbytes)
        self._reader.read(key, layout, memoryview(buffer))
        tensors = record_tensors(memoryview(buffer), layout)
        fields: Fields = {place.name: tensor for place, tensor in zip(layout.fields, tensors, strict=True)}
        bank = self._origin.model.banks[key.bank_key]
        if self._lossy(key):
            parameters = plan_record(layout, bank.bank.parameters, str(key.bank_key))
            fields = {
                name: tensors[one.positions[0]]
                if one.encoding is None
                else dequantise(one, tensors, self._origin.model.dtype)
                for name, one in parameters.items()
            }
        dtypes = {place.name: TORCH_DTYPES[place.dtype] for place in self.layout(bank).fields}
        fields = {name: field.to(dtypes[name]) for name, field in fields.items()}
        self._last = key, fields
        return fields


def expert_tensors(origin: StoreOrigin, keymap: KeyMap, fields: ExpertFields) -> Iterator[DenseTensor]:
    """All expert tensors of the checkpoint, each with its name, dtype and shape; nothing is read before its turn.

    Args:
        origin: The store; it has all experts.
        keymap: What its checkpoint's tensors hold.
        fields: Reads them.

    Raises:
        UnsupportedError: If transformers rearranges them on loading in a way that it cannot undo.
    """
    for key, bank in origin.model.banks.items():
        layout = fields.layout(bank)
        for place in layout.fields:
            source = keymap.experts[key].get(place.name)
            if source is None:
                raise UnsupportedError(
                    f"{key} has a field {place.name!r} that has no place in a checkpoint.",
                    advice="Export is not possible for this model; the store itself can be used.",
                    bank=str(key),
                )
            yield from _FieldTensors(origin, bank, place, source, fields).tensors()


@dataclass(frozen=True, slots=True)
class _FieldTensors:
    """The tensors that hold one field of all experts of a bank."""

    origin: StoreOrigin
    bank: OriginBank
    place: Field
    source: FieldSource
    fields: ExpertFields

    def tensors(self) -> Iterator[DenseTensor]:
        shapes = self._shapes()
        experts = range(self.bank.bank.num_experts)
        if self.source.per_expert:
            for expert in experts:
                for part, name in enumerate(self.source.names_of(expert)):
                    yield self._tensor(name, shapes[part], self._reads(part, expert, expert + 1))
            return
        count = len(experts)
        for part, name in enumerate(self.source.names_of(0)):
            rows = self.source.holding == "rows"
            shape = (count * shapes[part][0], *shapes[part][1:]) if rows else (count, *shapes[part])
            yield self._tensor(name, shape, self._reads(part, 0, count))

    def _shapes(self) -> list[tuple[int, ...]]:
        """The shape of one expert's share of each tensor."""
        if not is_plain(self.source):
            empty = torch.zeros(self.place.shape, dtype=TORCH_DTYPES[self.place.dtype])
            # Numbers that differ, so that what is turned round can be told from what is not.
            empty.view(-1).view(torch.uint8).copy_(torch.arange(self.place.nbytes) % 97)
            return [tuple(tensor.shape) for tensor in encode_field(self.source, empty, self.origin.model.skeleton)]
        parts = len(self.source.names)
        first = self.place.shape[0] if self.place.shape else 1
        if first % parts:
            raise UnsupportedError(
                f"{self.place.name} of {self.bank.bank.key} has {first} rows, which {parts} tensors cannot share.",
                advice="Export is not possible for this model; the store itself can be used.",
                tensor=self.source.target,
            )
        shape = self.place.shape if parts == 1 else (first // parts, *self.place.shape[1:])
        quantisation = self.origin.quantisation
        one_scale = quantisation is not None and quantisation.block is None and shape == (1, 1)
        return [() if one_scale else shape] * parts

    def _tensor(self, name: str, shape: tuple[int, ...], chunks: Callable[[], Iterator[memoryview]]) -> DenseTensor:
        return DenseTensor(name=name, dtype=self.place.dtype, shape=shape, chunks=chunks)

    def _reads(self, part: int, begin: int, end: int) -> Callable[[], Iterator[memoryview]]:
        def chunks() -> Iterator[memoryview]:
            for expert in range(begin, end):
                yield self._bytes(part, self.bank.bank.key.expert(expert))

        return chunks

    def _bytes(self, part: int, key: ExpertKey) -> memoryview:
        """An expert's share of one tensor."""
        value = self.fields.of(key)[self.place.name]
        if not is_plain(self.source):
            return tensor_bytes(encode_field(self.source, value, self.origin.model.skeleton)[part])
        parts = len(self.source.names)
        return tensor_bytes(value if parts == 1 else value.view(parts, -1)[part])

"""What a model takes in memory, added up once: for opening it, for saying whether it fits, for sharing a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from coterie.spec.context import ContextShape
from coterie.spec.keys import BankKey
from coterie.spec.layout import RecordLayout
from coterie.spec.parameters import dequantised_nbytes

READS_AT_ONCE = 4
"""Experts that are read at once where nothing was measured: enough for disks with queues, little harm for others."""


PartUse = Literal["encoding", "speaking"]
PART_USES: tuple[PartUse, ...] = get_args(PartUse)
"""What a part of a model is for: it encodes pictures or sounds of a prompt, or it speaks."""

ROWS_NBYTES = 16 << 20
"""Bytes of the rows of a table of embeddings that are kept, where they are read when they are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a model that only some requests need.

    Attributes:
        path: Its place in the model, such as ``thinker.visual``.
        use: What it is for.
        nbytes: Bytes that leave memory with it.
    """

    path: str
    use: PartUse
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BankRecords:
    """The experts of a bank, as far as memory is concerned.

    Attributes:
        layouts: Layout → how many of the experts that are there have it.
        absent: Experts that are not there.
    """

    layouts: Mapping[RecordLayout, int]
    absent: int = 0

    @property
    def largest(self) -> int:
        """Bytes of the largest record; 0 if there is none."""
        return max((layout.nbytes for layout in self.layouts), default=0)

    @property
    def present(self) -> int:
        """Bytes of the records that are there."""
        return sum(layout.nbytes * count for layout, count in self.layouts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a model takes in memory, in bytes, whatever the budget; a source makes it without reading an expert.

    Attributes:
        dense: Everything that is not an expert, as it is in memory.
        parts: Of that, what only some requests need.
        table: Of that, the table of embeddings, if its rows can be read when they are asked for.
        shape: What a forward pass takes: keys and values per token, and activations.
        reading: Buffers for reading experts.
        dequantising: What quantised experts take while they are computed with: the largest one, twice, because the one
            before may not be gone yet.
        record: The largest expert.
        experts: The experts that are there.
        all_experts: All the model's experts: absent ones are as large as the largest of their bank, of their component
            where the bank has none, or of the model.
    """

    dense: int
    parts: tuple[Part, ...] = ()
    table: int = 0
    shape: ContextShape
    reading: int
    dequantising: int
    record: int
    experts: int
    all_experts: int

    @classmethod
    def of(
        cls,
        banks: Mapping[BankKey, BankRecords],
        *,
        dense: int,
        shape: ContextShape,
        parts: tuple[Part, ...] = (),
        table: int = 0,
        buffered_reads: int = 0,
    ) -> Footprint:
        """Adds up.

        Args:
            banks: All banks of the model.
            dense: Bytes of everything that is not an expert, in memory.
            shape: Dimensions of the model.
            parts: Of ``dense``, what only some requests need.
            table: Of ``dense``, the table of embeddings whose rows can be read when they are asked for; 0 if none can.
            buffered_reads: Experts that are read at once by way of buffers, as a checkpoint's are.
        """
        of_component: dict[str, int] = {}
        for key, bank in banks.items():
            of_component[key.component] = max(of_component.get(key.component, 0), bank.largest)
        record = max(of_component.values(), default=0)
        layouts = {layout for bank in banks.values() for layout in bank.layouts}
        absent = 0
        for key, bank in banks.items():
            absent += bank.absent * (bank.largest or of_component[key.component] or record)
        experts = sum(bank.present for bank in banks.values())
        return cls(
            dense=dense,
            parts=parts,
            table=table,
            shape=shape,
            reading=2 * buffered_reads * record,
            dequantising=2 * max((dequantised_nbytes(layout, shape.itemsize) for layout in layouts), default=0),
            record=record,
            experts=experts,
            all_experts=experts + absent,
        )

    @property
    def lasting(self) -> int:
        """Bytes of the dense part that are always in memory, where parts and the table of embeddings need not be."""
        rows = self.table - min(self.table, ROWS_NBYTES)
        return self.dense - sum(part.nbytes for part in self.parts) - rows

    def parts_for(self, use: PartUse) -> int:
        """Bytes of the parts that are in memory for a use."""
        return sum(part.nbytes for part in self.parts if part.use == use)

    @property
    def least_experts(self) -> int:
        """The smallest arena that will do: room for two experts, one to compute with, one to read; or for all."""
        return min(2 * self.record, self.experts)

    @property
    def buffers(self) -> int:
        """What experts need beside the arena."""
        return self.reading + self.dequantising

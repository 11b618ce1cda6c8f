"""What is said about a model's contents."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from coterie.inspection.dense_parts import DensePartFacts
from coterie.inspection.row_batching import RowsFacts
from coterie.spec import Batching
from coterie.store import AllocationFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class BankFacts:
    """One bank of experts.

    Attributes:
        component: Part of the model.
        layer: Layer.
        bank: Bank within the layer, almost always ``mlp``.
        experts: Experts with weights that the model has.
        present: Experts that are here.
        top_k: Experts per token, or None if it is not fixed.
        schemes: Experts present by scheme.
        encodings: How quantised weights of those present are encoded: ``fp8``, ``mxfp4``; empty if none are.
        present_nbytes: Bytes of the records of those present.
        record_nbytes: Bytes of the largest record; where none is present, that of the component's other banks, 0 if
            they have none either.
    """

    component: str
    layer: int
    bank: str
    experts: int
    present: int
    top_k: int | None
    schemes: dict[str, int]
    encodings: tuple[str, ...]
    present_nbytes: int
    record_nbytes: int

    @property
    def full_nbytes(self) -> int:
        """Bytes of all records if every expert were here, the absent ones as large as the largest present."""
        return self.present_nbytes + (self.experts - self.present) * self.record_nbytes

    @property
    def working_set_nbytes(self) -> int:
        """Bytes of the experts that one token needs."""
        return (self.top_k or self.experts) * self.record_nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentFacts:
    """All banks of one component.

    Attributes:
        component: Part of the model.
        banks: Banks.
        experts: Experts with weights that the model has.
        present: Experts that are here.
        present_nbytes: Bytes of the records of those present.
        full_nbytes: Bytes of all records if every expert were here; None if no expert tells the size.
        working_set_nbytes: Bytes that one token's experts take in all layers: Σ top-k × record.
    """

    component: str
    banks: int
    experts: int
    present: int
    present_nbytes: int
    full_nbytes: int | None
    working_set_nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Which model a store or checkpoint is.

    Attributes:
        kind: ``store`` or ``checkpoint``.
        model: Path or Hub id.
        source: Name of the checkpoint that it is, or was made from.
        revision: Commit of the Hub repository, or None.
        model_class: transformers class.
        model_type: ``model_type`` of its configuration.
        component: The part of a larger model that it is, or None.
        identity: Fingerprint of the model: the same for every store of it. None if the routers are not downloaded.
        integrity: Fingerprint of the source. None likewise.
    """

    kind: Literal["store", "checkpoint"]
    model: str
    source: str
    revision: str | None
    model_class: str
    model_type: str
    component: str | None
    identity: str | None
    integrity: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectReport:
    """What a model holds.

    Attributes:
        schema_version: Version of this form.
        model: Which model it is.
        planned: Whether this is what a store of the checkpoint would hold, in the schemes that were asked about.
        complete: Whether every expert is present.
        experts: Experts with weights that the model has.
        present: Experts that are here.
        banks: By component, layer and bank.
        components: By name.
        dense_nbytes: Bytes of everything that is not an expert, as stored.
        dense_memory_nbytes: Bytes of it in memory, always resident: more where quantised weights are dequantised.
        dense_scheme: Scheme of linear layers outside experts: one, or one by part, such as
            ``attention=int8,encoders=native``.
        dense_parts: The parts outside experts that the model has, with their schemes; empty if it cannot be built.
        expert_nbytes: Bytes of the experts present.
        full_nbytes: Bytes of dense part and all experts, were they here; None if no expert tells the size.
        disk_nbytes: Bytes on disk: all files of a store, all tensors of a checkpoint or of a component, or of
            the store that is planned.
        minimum_nbytes: The least budget for the process that can work, without any context: process, dense part, two
            records, and buffers.
        working_set_nbytes: Bytes that one token's experts take in all layers, of the component that takes most: a
            token goes through one.
        ignored: Checkpoint tensors that transformers does not use.
        allocation: What bits of experts were allocated by, if they were.
        batching: How many requests share a forward pass, with ``exact`` and with ``fast``.
    """

    schema_version: int = 2
    model: Model
    planned: bool
    complete: bool
    experts: int
    present: int
    banks: tuple[BankFacts, ...]
    components: tuple[ComponentFacts, ...]
    dense_nbytes: int
    dense_memory_nbytes: int
    dense_scheme: str
    dense_parts: tuple[DensePartFacts, ...]
    expert_nbytes: int
    full_nbytes: int | None
    disk_nbytes: int
    minimum_nbytes: int
    working_set_nbytes: int
    ignored: tuple[str, ...]
    allocation: AllocationFacts | None
    batching: dict[Batching, RowsFacts]

    def to_json(self) -> dict[str, object]:
        """The report as JSON values."""
        return asdict(self)

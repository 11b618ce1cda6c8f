"""What a store is going to hold, known before the first byte is written: every offset follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from coterie.errors import StoreFormatError, UsageError
from coterie.spec import BankKey, RecordLayout
from coterie.spec.dense_schemes import NATIVE_EVERYWHERE, DenseSchemes
from coterie.store import names
from coterie.store.allocation_json import allocation_value
from coterie.store.manifest import (
    AllocationFacts,
    Bank,
    CalibrationFacts,
    FileFacts,
    Manifest,
    ModelFacts,
    Record,
    Segment,
    SourceFacts,
)
from coterie.store.manifest_json import manifest_bytes, parse_manifest
from coterie.store.safetensors_file import build_header
from coterie.store.strict_json import dump_json

_NO_CHECKSUM = "0" * 32


@dataclass(frozen=True, kw_only=True)
class PlannedExpert:
    """An expert that the store is to hold.

    Attributes:
        expert: Id within the bank.
        scheme: ``native``, ``int8``, ``int4``, ...
        layout: Layout of its record.
    """

    expert: int
    scheme: str
    layout: RecordLayout


@dataclass(frozen=True, kw_only=True)
class BankPlan:
    """A bank of the model and the experts of it that the store is to hold (none, some or all).

    Attributes:
        key: Component, layer and bank.
        num_experts: E, the experts that the model has, weightless ones included.
        top_k: Experts that the router chooses per token, or None if it is not fixed.
        sources: Checkpoint keys, or patterns of keys, that the experts come from.
        experts: The experts to hold, in any order.
        weightless: Ids of experts without weights, ascending.
    """

    key: BankKey
    num_experts: int
    top_k: int | None
    sources: tuple[str, ...]
    experts: tuple[PlannedExpert, ...]
    weightless: tuple[int, ...] = ()

    def bank(self, segments: tuple[Segment, ...]) -> Bank:
        """What the manifest says of the bank when it has these segments."""
        return Bank(
            key=self.key,
            num_experts=self.num_experts,
            top_k=self.top_k,
            sources=self.sources,
            weightless=self.weightless,
            segments=segments,
        )

    def segment(self, number: int, present: Mapping[int, Record]) -> SegmentPlan | None:
        """The file for those of the experts that are not present yet; None if all are."""
        chosen = sorted(
            (planned for planned in self.experts if planned.expert not in present), key=lambda one: one.expert
        )
        if not chosen:
            return None
        data, header = build_header((f"{one.expert:05d}", "U8", (one.layout.nbytes,)) for one in chosen)
        file = names.segment_file(self.key, number)
        records = tuple(
            Record(
                expert=one.expert,
                offset=entry.offset,
                nbytes=entry.nbytes,
                scheme=one.scheme,
                layout=one.layout.name,
                checksum=_NO_CHECKSUM,
            )
            for one, entry in zip(chosen, header.tensors, strict=True)
        )
        return SegmentPlan(
            key=self.key,
            header=data,
            segment=Segment(file=file, nbytes=header.nbytes, records=records),
            layouts={one.expert: one.layout for one in chosen},
        )


@dataclass(frozen=True, kw_only=True)
class SegmentPlan:
    """One file of experts that is to be written.

    Attributes:
        key: Its bank.
        header: Bytes before the first record.
        segment: Where each record goes; checksums are still zeros.
        layouts: Layout of each record by expert id.
    """

    key: BankKey
    header: bytes
    segment: Segment
    layouts: Mapping[int, RecordLayout]


@dataclass(frozen=True, kw_only=True)
class StorePlan:
    """Everything about a store except its bytes.

    Attributes:
        model: Which model.
        source: Which checkpoint.
        banks: All banks of the model (or component), in any order, also those of which no expert is wanted.
        files: Relative names of the side files (config, tokenizer, ...) that will be copied.
        ignored: Checkpoint tensors that transformers does not use.
        dense_schemes: The schemes of linear layers outside experts.
        made_from: Tells apart sources that give other bytes for the same plan; in the journal only.
        calibration: What codes are chosen by; None if by the weights alone.
        allocation: What schemes are allocated by; None if somebody named them.
    """

    model: ModelFacts
    source: SourceFacts
    banks: tuple[BankPlan, ...]
    files: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    dense_schemes: DenseSchemes = NATIVE_EVERYWHERE
    made_from: str = ""
    calibration: CalibrationFacts | None = None
    allocation: AllocationFacts | None = None

    @property
    def layouts(self) -> dict[str, RecordLayout]:
        """The layouts of all planned experts by name.

        Raises:
            UsageError: If one name stands for two different layouts.
        """
        found: dict[str, RecordLayout] = {}
        for bank in self.banks:
            for planned in bank.experts:
                layout = found.setdefault(planned.layout.name, planned.layout)
                # Bank plans usually share one object per layout; comparing fields thousands of times is slow.
                if layout is not planned.layout and layout != planned.layout:
                    raise UsageError(
                        f"Two different record layouts are both named {layout.name!r}.", layout=layout.name
                    )
        return found

    @property
    def expert_nbytes(self) -> int:
        """Bytes of all expert files of a store made from this plan at once, headers included."""
        segments = (bank.segment(0, {}) for bank in self.banks)
        return sum(segment.segment.nbytes for segment in segments if segment is not None)

    def draft(self) -> Manifest:
        """The manifest with zeros for checksums and for the sizes of whole files.

        Raises:
            UsageError: If a store cannot hold what is planned: duplicate experts, ids out of range, bad names.
        """
        banks: list[Bank] = []
        for plan in sorted(self.banks, key=lambda bank: bank.key):
            segment = plan.segment(0, {})
            banks.append(plan.bank(() if segment is None else (segment.segment,)))
        draft = Manifest(
            model=self.model,
            source=self.source,
            layouts=self.layouts,
            banks=tuple(banks),
            dense=(FileFacts(file=names.dense_files(1)[0], nbytes=0, checksum=_NO_CHECKSUM),),
            dense_index=None,
            files=tuple(FileFacts(file=name, nbytes=0, checksum=_NO_CHECKSUM) for name in sorted(self.files)),
            ignored=tuple(sorted(self.ignored)),
            dense_schemes=self.dense_schemes,
            calibration=self.calibration,
            allocation=self.allocation,
        )
        try:
            return parse_manifest(manifest_bytes(draft), Path(names.MANIFEST))
        except StoreFormatError as error:
            raise UsageError(f"The store's plan breaks the store format: {error.message}") from error

    def digests(self) -> dict[str, str]:
        """A digest per part of the plan: equal plans, whatever their order, have equal digests."""
        whole = self.draft()
        parts: dict[str, object] = {
            "model": [self.model.class_name, self.model.model_type, self.model.component, self.model.identity],
            "source": [self.source.name, self.source.revision, self.source.integrity, self.made_from],
            "experts": [
                [list(bank.key), [[r.expert, r.scheme, r.layout] for r in bank.records.values()]]
                for bank in whole.banks
            ],
            "banks": [
                [list(bank.key), bank.num_experts, bank.top_k, list(bank.sources), list(bank.weightless)]
                for bank in whole.banks
            ],
            "layouts": {
                name: [layout.nbytes, [[f.name, f.dtype, list(f.shape), f.offset] for f in layout.fields]]
                for name, layout in whole.layouts.items()
            },
            "files": [facts.file for facts in whole.files],
            "ignored": list(whole.ignored),
            "dense schemes": str(whole.dense_schemes),
        }
        if self.calibration is not None:
            parts["calibration texts"] = self.calibration.fingerprint
        if self.allocation is not None:
            parts["allocation"] = allocation_value(self.allocation)
        return {name: str(xxhash.xxh3_128_hexdigest(dump_json(part))) for name, part in parts.items()}


def plan_segments(plan: StorePlan, base: Manifest | None) -> dict[BankKey, SegmentPlan]:
    """The expert files that a plan asks for beyond what a finished store has, by bank in ascending order."""
    segments: dict[BankKey, SegmentPlan] = {}
    for bank_plan in sorted(plan.banks, key=lambda bank: bank.key):
        bank = None if base is None else base.banks_by_key[bank_plan.key]
        segment = bank_plan.segment(len(bank.segments), bank.records) if bank else bank_plan.segment(0, {})
        if segment is not None:
            segments[bank_plan.key] = segment
    return segments

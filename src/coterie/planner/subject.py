"""What has to be known of a model to say how fast it would run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from coterie.inspection.contents import Contents
from coterie.inspection.report import BankFacts
from coterie.spec.encodings import NATIVE
from coterie.spec.footprint import Footprint
from coterie.spec.parameters import precision, weight_count

_EVERY_TOKEN = ("attention", "shared_experts", "mlp", "head", "routers", "norms")
"""Parts outside experts whose weights are multiplied for every token of text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The part of a model that text goes through: of an omni model the component with the largest working set.

    Attributes:
        component: Its name.
        layers: Layers with experts.
        experts: Experts of such a layer, on average.
        top_k: Experts that a token asks for in such a layer, on average.
        record: Bytes of an expert, on average.
        expert_nbytes: Bytes of all experts of the component.
        bits: Bits per weight of experts, scales included.
        expert_precision: How most experts are stored: ``int4``, ``mxfp4``, ``bf16`` and so on.
        dense: Bytes outside experts that are multiplied for each token, by precision.
        footprint: What the model takes in memory.
        records: Expert by expert, bytes of the records of all components.
        model_type: ``model_type`` of the configuration.
    """

    component: str
    layers: int
    experts: float
    top_k: float
    record: float
    expert_nbytes: int
    bits: float
    expert_precision: str
    dense: Mapping[str, int]
    footprint: Footprint
    records: list[int]
    model_type: str

    @classmethod
    def of(cls, contents: Contents, *, experts_per_token: int | None = None) -> Subject:
        """Takes what counts from what a model holds.

        Args:
            contents: The model.
            experts_per_token: Asked for instead of what the model was trained for.
        """
        report = contents.report
        chosen = max(report.components, key=lambda one: one.working_set_nbytes).component
        banks = [bank for bank in report.banks if bank.component == chosen and bank.present]
        layers = max(1, len(banks))
        present = sum(bank.present for bank in banks)
        nbytes = sum(bank.present_nbytes for bank in banks)
        weights = sum(weight_count(layout) * count for layout, count in contents.layouts.items())
        stored = sum(layout.nbytes * count for layout, count in contents.layouts.items())
        most = max(contents.layouts, key=lambda layout: contents.layouts[layout], default=None)
        return cls(
            component=chosen,
            layers=layers,
            experts=present / layers,
            top_k=sum(experts_per_token or _top_k(bank) for bank in banks) / layers,
            record=nbytes / max(1, present),
            expert_nbytes=nbytes,
            bits=8 * stored / max(1, weights),
            expert_precision=NATIVE if most is None else precision(most),
            dense=_dense(contents),
            footprint=contents.footprint,
            records=contents.records,
            model_type=report.model.model_type,
        )

    @property
    def working_set(self) -> float:
        """Bytes of the experts that one token asks for."""
        return self.layers * self.top_k * self.record

    @property
    def precisions(self) -> set[str]:
        """In which weights are multiplied for a token."""
        return {self.expert_precision, *self.dense}

    def with_experts_scaled(self, factor: float) -> Subject:
        """The same model with experts of so many times the bytes."""
        footprint = self.footprint
        return replace(
            self,
            record=self.record * factor,
            expert_nbytes=int(self.expert_nbytes * factor),
            bits=self.bits * factor,
            footprint=replace(
                footprint,
                record=int(footprint.record * factor),
                experts=int(footprint.experts * factor),
                all_experts=int(footprint.all_experts * factor),
            ),
            records=[int(record * factor) for record in self.records],
        )

    def with_experts_kept(self, share: float, of_all: float) -> Subject:
        """The same model with fewer experts, of which a token asks for as many as before.

        Args:
            share: Share of the experts of this part that stay.
            of_all: Share of the bytes of the experts of all parts that stay.
        """
        footprint = self.footprint
        return replace(
            self,
            experts=self.experts * share,
            expert_nbytes=int(self.expert_nbytes * share),
            footprint=replace(
                footprint,
                experts=int(footprint.experts * of_all),
                all_experts=int(footprint.all_experts * of_all),
            ),
            records=self.records[: round(len(self.records) * of_all)],
        )


def _top_k(bank: BankFacts) -> int:
    return bank.top_k or bank.experts


def _dense(contents: Contents) -> dict[str, int]:
    """Bytes by precision, as they are in memory: what is quantised in a checkpoint is dequantised on loading."""
    report = contents.report
    parts = {part.part: part for part in report.dense_parts}
    if not parts:
        return {NATIVE: report.dense_memory_nbytes}
    found: Counter[str] = Counter()
    for name in _EVERY_TOKEN:
        if name in parts:
            found.update(parts[name].schemes)
    if "head" not in parts and "embeddings" in parts:
        # The head is the table of embeddings, and is multiplied, too.
        found.update(parts["embeddings"].schemes)
    grown = report.dense_memory_nbytes / max(1, report.dense_nbytes)
    return {scheme: int(nbytes * (grown if scheme == NATIVE else 1)) for scheme, nbytes in found.items()}

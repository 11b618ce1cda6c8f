"""A model that takes part in an evaluation: what it is, and how it is opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from coterie.engine import ModelSource, open_source, open_streamed
from coterie.engine.alteration import Alteration
from coterie.engine.source import text_component
from coterie.evaluate.evaluation import ModelFacts
from coterie.evaluate.overlap import shared
from coterie.evaluate.texts import Text
from coterie.generation.processors import Processors
from coterie.hf.tokenizer import check_tokenizer, embedding_rows
from coterie.spec import AdaptiveExperts
from coterie.spec.opening import Opening


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, not open yet.

    Attributes:
        path: The model.
        opening: How it is opened. Of a whole omni model its thinker is, unless another component is named.
        adapt_experts: What :meth:`Runtime.adapt_experts` is told for each window.
        alteration: What it has instead of what is stored.
        in_steps: Whether tokens are computed one by one, in order, whatever its output depends on: what is read is
            counted then.
    """

    path: str | Path
    opening: Opening
    adapt_experts: str | AdaptiveExperts | None = None
    alteration: Alteration | None = None
    in_steps: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Without what is opened, which every process opens for itself."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def source(self) -> ModelSource:
        """Where it is opened from; reads no expert."""
        return self.stored if self.alteration is None else self.alteration.of(self.stored)

    @cached_property
    def stored(self) -> ModelSource:
        """The same without its alteration."""
        return open_source(
            self.path,
            component=self._part,
            revision=self.opening.revision,
            offline=self.opening.offline,
            fetch=self.opening.missing == "fetch",
            max_rate=self.opening.max_rate,
        )

    @cached_property
    def processors(self) -> Processors:
        """What makes its inputs."""
        return Processors(self.source.directory, store=self.source.store)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of its directory."""
        return self.processors.tokenizer

    @cached_property
    def _part(self) -> str | None:
        if self.opening.component is not None:
            return self.opening.component
        return text_component(
            self.path, revision=self.opening.revision, offline=self.opening.offline, max_rate=self.opening.max_rate
        )

    @property
    def facts(self) -> ModelFacts:
        """What results say about it."""
        return ModelFacts(
            name=self.source.name,
            kind=self.source.kind,
            identity=self.source.identity,
            experts=sum(len(ids) for ids in self.source.present.values()),
            total_experts=sum(self.source.num_experts.values()),
        )

    def calibrated_on(self, texts: Sequence[Text]) -> tuple[float, ...] | None:
        """About which share of each text the codes of its experts were calibrated on; None if they were not."""
        store = self.source.store
        facts = None if store is None else store.manifest.calibration
        return None if facts is None else tuple(shared(text.ids, facts.sequences) for text in texts)

    @property
    def fingerprint(self) -> str:
        """Hex digits that differ if logits may; see :meth:`ModelSource.fingerprint`."""
        stored = self.stored.fingerprint(fetched=self.opening.missing == "fetch")
        return stored if self.alteration is None else f"{stored} {self.alteration.fingerprint}"

    @property
    def in_order(self) -> bool:
        """Whether tokens are computed one by one, in order: on request, or as output depends on what is in memory."""
        return self.in_steps or self.opening.drop_cold is not None

    @property
    def cache_settings(self) -> dict[str, Any]:
        """What decides which experts are in memory, as it was asked for."""
        said = self.opening
        return {"memory": said.memory, "expert_memory": said.expert_memory, "eviction": said.eviction}

    @contextmanager
    def open(self, *, memory: int | None, max_context: int) -> Iterator[Any]:
        """Opens it for sequences of ``max_context`` tokens; frees it at the end.

        Raises:
            LoadError: If its tokenizer does not fit its embedding.
            CoterieError: As :func:`coterie.load`.
        """
        opening = replace(self.opening, memory=memory, component=self._part, max_context=max_context)
        model = open_streamed(self.path, opening, self.alteration)
        try:
            rows = embedding_rows(model)
            if rows is not None:
                check_tokenizer(self.tokenizer, rows, path=self.source.directory)
            yield model
        finally:
            model.coterie.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two models, open.

    Attributes:
        subject: What it is.
        model: From :meth:`Subject.open`.
    """

    subject: Subject
    model: Any

"""A piece of material through an open model: to what its routers chose."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from coterie.cluster.workers import RemoteModel, WorkerFacts
from coterie.engine.bit_identity import worker_facts
from coterie.engine.profile_runs import bank_shapes
from coterie.engine.quiet import quiet_libraries
from coterie.errors import CoterieError
from coterie.generation.opened import OpenModel
from coterie.profiles.observations import Observations
from coterie.spec.opening import check_recording


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What is read at once: a window of a text, or a sound or picture.

    Attributes:
        domain: What its tokens count as.
        file: The path of its file, for messages.
        inputs: What the model's forward takes, by name.
    """

    domain: str
    file: str
    inputs: dict[str, Any]


class Reader:
    """Reads pieces with an open model.

    Args:
        opened: The model.
        contributions: Whether it is measured what experts add to their layers' output.

    Attributes:
        banks: The model's banks.

    Raises:
        UsageError: If the model leaves out experts that are not in memory.
    """

    def __init__(self, opened: OpenModel, *, contributions: bool) -> None:
        runtime = opened.runtime
        check_recording(runtime.drop_cold, "profile")
        self.banks = bank_shapes(runtime.expert_banks, runtime.experts_per_token)
        self._model: Any = opened.model
        self._runtime = runtime
        self._contributions = contributions
        # That of an instance, which may take more than its class's.
        takes = inspect.signature(self._model.forward).parameters
        # No logits are wanted; those of the last token are the fewest there are.
        self._options = {"use_cache": False} | ({"logits_to_keep": 1} if "logits_to_keep" in takes else {})

    @torch.inference_mode()
    def run(self, shard: Piece) -> Observations:
        """Has the model read a piece; says what its routers chose."""
        seen = Observations(self.banks)
        inputs = {
            name: one.to(self._model.dtype) if isinstance(one, torch.Tensor) and one.is_floating_point() else one
            for name, one in shard.inputs.items()
        }
        with (
            naming(shard.file),
            self._runtime.count_choices(
                seen, domain=shard.domain, contributions=self._contributions, boundaries=False
            ) as recorder,
        ):
            self._model(**inputs, **self._options)
        seen.tokens = dict(recorder.tokens)
        return seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The work of a worker elsewhere: it opens the model for itself.

    Attributes:
        model: Which, and how.
        contributions: As for :class:`Reader`.
    """

    model: RemoteModel
    contributions: bool

    @contextmanager
    def open(self) -> Iterator[tuple[Reader, WorkerFacts]]:
        """Opens the model; frees it at the end. Errors as of :meth:`OpenModel.open`."""
        path, opening = self.model.path, self.model.opening
        with quiet_libraries(show_downloads=False):
            opened = OpenModel.open(path, opening)
        try:
            reader = Reader(opened, contributions=self.contributions)
            facts = worker_facts((path, opened.runtime.source, opening))
            yield reader, replace(facts, details=reader.banks)
        finally:
            opened.model.coterie.close()


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Errors inside name a file, if they do not already."""
    try:
        yield
    except CoterieError as error:
        if file in error.message:
            raise
        raise type(error)(f"{file}: {error.message}", advice=error.advice, **error.facts) from error

"""Goes through a model layer by layer and chooses the codes of its experts by what they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from coterie.calibration.hessians import Hessians
from coterie.calibration.inputs import Runs
from coterie.calibration.layers import Layers
from coterie.calibration.memory import Room
from coterie.calibration.solving import Problem, Solution
from coterie.calibration.states import States
from coterie.cluster.workers import Workers
from coterie.extraction.calibrating import Stopped, WeightsOf
from coterie.generation.opened import OpenModel
from coterie.passes.products import SeenProducts, check_seen
from coterie.spec import BankKey, ExpertKey


class LayerCalibrator:
    """A :class:`~coterie.extraction.calibrating.Calibrator`.

    A layer is run over all inputs before its experts' codes are chosen; with little memory several times, each time for
    some of its experts. What the next layer is given is kept on disk, so no layer is run for another one's sake. It is
    given what the model as it is computes, whatever codes were chosen before: a layer's codes depend on no other's.

    Args:
        opened: The model.
        runs: What it is run over.
        room: For second moments.
        folder: Where states are kept.
        solvers: Who choose codes.
    """

    def __init__(
        self,
        opened: OpenModel,
        runs: Runs,
        room: Room,
        folder: Path,
        solvers: Workers[list[Problem], dict[str, Solution]],
    ) -> None:
        self._solvers = solvers
        self._chosen: dict[str, Solution] = {}
        self._opened = opened
        self._runs = runs.runs
        self._room = room
        self._banks = opened.runtime.streamed_banks
        self._layers = Layers(opened.model, opened.runtime.expert_banks)
        self._states = States(folder, runs.fingerprint, len(runs.runs))
        takes = inspect.signature(opened.model.forward).parameters
        self._options = {"use_cache": False} | ({"logits_to_keep": 1} if "logits_to_keep" in takes else {})

    def order(
        self, bank: BankKey, experts: Sequence[int], weights: WeightsOf, stopped: Callable[[], bool]
    ) -> Iterator[int]:
        """See :class:`~coterie.extraction.calibrating.Calibrator`."""
        self._chosen = {}
        if bank not in self._banks:  # of a part of the model that these inputs do not reach
            yield from experts
            return
        number = self._layers.numbers[bank]
        while self._states.layer < number:
            self._advance(stopped)
        streamed = self._banks[bank]
        at_once = self._room.experts_at_once(streamed.bank, len(experts))
        hessians = Hessians((), {})
        for first in range(0, len(experts), at_once):
            together = experts[first : first + at_once]
            hessians = Hessians(together, hessians.sums)
            self._watch(number, bank, hessians, stopped)
            problems = partial(_problems, bank, hessians, weights)
            for expert, chosen in self._solvers.map(together, problems, stopped):
                self._chosen = chosen or {}
                hessians.forget(expert)
                yield expert
            if stopped():
                raise Stopped

    def chosen(self, key: ExpertKey, parameter: str) -> Solution | None:
        """See :class:`~coterie.extraction.calibrating.Calibrator`."""
        return self._chosen.get(parameter)

    def finish(self) -> None:
        """Removes what was kept."""
        self._states.remove()

    def _watch(self, number: int, bank: BankKey, hessians: Hessians, stopped: Callable[[], bool]) -> None:
        """Runs a layer over all inputs and adds up what its experts are given."""
        seen: set[str] = set()

        def sees(key: ExpertKey, parameter: str, rows: torch.Tensor) -> None:
            seen.add(parameter)
            hessians.add(key, parameter, rows)

        streamed = self._banks[bank]
        for run in range(len(self._runs)):
            with SeenProducts([streamed], sees):
                self._run(number, run, stopped)
        if streamed.counters.requested:
            check_seen(streamed, seen)

    def _advance(self, stopped: Callable[[], bool]) -> None:
        """Goes to the next layer; runs this one unless that was done."""
        number = self._states.layer
        if not self._states.has_next:
            for run in range(len(self._runs)):
                self._run(number, run, stopped)
        self._states.advance(self._returns)

    def _run(self, number: int, run: int, stopped: Callable[[], bool]) -> None:
        if stopped():
            raise Stopped
        inputs = self._runs[run].inputs(self._opened.processors, self._opened.model.dtype)
        hidden = self._states.load(run) if number else None
        after, self._returns = self._layers.run(number, inputs, self._options, hidden, self._states.returns)
        if after is not None and not self._states.has_next:
            self._states.keep(run, after)


def _problems(bank: BankKey, hessians: Hessians, weights: WeightsOf, expert: int) -> list[Problem] | None:
    """What is to be solved for an expert; None if nothing is known of its inputs."""
    found = []
    for name, (matrix, value) in weights(expert).items():
        hessian = hessians.of(expert, name)
        if hessian is not None:
            rows = value.t() if matrix.transposed else value
            found.append(Problem(bank.expert(expert), name, matrix.scheme.name, rows, hessian))
    return found or None

"""What a user asks for: files by domain, and how much of them, under a memory budget."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from coterie.calibration.calibrator import LayerCalibrator
from coterie.calibration.defaults import default_texts
from coterie.calibration.inputs import Runs, plan_runs
from coterie.calibration.memory import divide_budget, solver_nbytes
from coterie.calibration.solving import Problem, Solution, Solver, Solving
from coterie.calibration.states import remove_states
from coterie.cluster.connection import check_ray
from coterie.cluster.placement import Placement
from coterie.cluster.spreading import spread
from coterie.cluster.workers import Here, Workers, never
from coterie.engine import ModelSource, open_source
from coterie.engine.bit_identity import worker_facts
from coterie.engine.source import text_component
from coterie.errors import UnsupportedError, UsageError
from coterie.evaluate.planning import DEFAULT_CONTEXT
from coterie.extraction.calibrating import Calibrator
from coterie.generation.opened import OpenModel
from coterie.generation.processors import Processors
from coterie.hf.banks import ExpertBank
from coterie.hf.context import model_context
from coterie.origins import Origin
from coterie.spec.opening import Opening
from coterie.store import CalibrationFacts
from coterie.survey import Material, without_repetitions

DEFAULT_TOKENS = 65_536
"""Tokens that a model is calibrated on where nobody says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Texts, sounds and pictures that the codes of a store's experts are chosen by; for :func:`coterie.quantize`.

    Codes are right for what experts are given while the model reads these. So the material should be of all kinds that
    the model is for: with texts of one kind alone, others get worse than without calibration.

    Attributes:
        material: Files by domain, from :func:`coterie.survey.gather`. Default: :func:`default_texts`, which come with
            the package.
        tokens: Tokens of all domains together. Each domain gives as many, and each of its files.
        memory: Ceiling for the whole process, the running model and all that is counted. Default: what the machine
            allows.
        ray: Address of a Ray cluster, such as ``"10.0.0.1:6379"``, ``"auto"`` or ``"local"``, whose workers choose the
            codes, which takes most of the time. They need no model. The codes are those of this process, to the last
            bit.
    """

    material: Sequence[Material] = field(default_factory=default_texts)
    tokens: int = DEFAULT_TOKENS
    memory: str | int | None = None
    ray: str | None = None

    def of(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        offline: bool = False,
        max_rate: str | int | None = None,
    ) -> ModelCalibration:
        """That of a model.

        Raises:
            UsageError: If there is no material, or a number is out of range.
            MissingPackageError: If Ray is wanted and not installed.
        """
        material = without_repetitions(self.material)
        if not material:
            raise UsageError("There is nothing to calibrate with.", advice="Give texts of several domains.")
        if self.tokens < 1:
            raise UsageError(f"tokens must be at least 1, not {self.tokens}.", got=self.tokens)
        opening = Opening(memory=self.memory, revision=revision, offline=offline, max_rate=max_rate, prefetch="off")
        opening.check()
        if self.ray is not None:
            check_ray("Workers of a cluster")
        return ModelCalibration(model, opening, material, self.tokens, self.ray)


class ModelCalibration:
    """A :class:`~coterie.extraction.calibrating.Calibration`: that of one model.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``.
        opening: How it is opened.
        material: What it is run over.
        tokens: Of that.
        ray: Address of a cluster whose workers choose codes; None to choose them here.
    """

    def __init__(
        self, model: str | Path, opening: Opening, material: Sequence[Material], tokens: int, ray: str | None
    ) -> None:
        self._ray = ray
        self._model = model
        self._opening = opening
        self._material = material
        self._tokens = tokens

    def facts(self) -> CalibrationFacts:
        """See :class:`~coterie.extraction.calibrating.Calibration`.

        Raises:
            UnsupportedError: If the model does not read texts, or experts are missing.
            InputError: If a file cannot be used.
        """
        runs = self._runs
        return CalibrationFacts(fingerprint=runs.fingerprint, tokens=runs.tokens, sequences=runs.sequences)

    def kept_nbytes(self, origin: Origin) -> int:
        """See :class:`~coterie.extraction.calibrating.Calibration`.

        Raises:
            MemoryBudgetError: If not even one expert at a time can be calibrated; says what would do.
        """
        divide_budget(self._source, self._own(origin), self._opening.memory, self._context)
        config = self._source.config.get_text_config(decoder=True)
        dtype = origin.model.dtype
        # What a layer is given, and what the layer after it will be.
        return 2 * sum(self._runs.tokens.values()) * int(config.hidden_size) * dtype.itemsize

    def clear(self, folder: Path) -> None:
        """See :class:`~coterie.extraction.calibrating.Calibration`."""
        remove_states(folder)

    @contextmanager
    def begin(self, origin: Origin, folder: Path) -> Iterator[Calibrator]:
        """See :class:`~coterie.extraction.calibrating.Calibration`."""
        runs, context, own = self._runs, self._context, self._own(origin)
        room = divide_budget(self._source, own, self._opening.memory, context)
        opening = replace(self._opening, component=self._component, memory=room.model, max_context=context)
        with ExitStack() as stack:
            with warnings.catch_warnings():
                # A pass over many tokens reads each expert once, however few have room together.
                warnings.filterwarnings("ignore", message=".*most will be read again for every token")
                opened = OpenModel.open(str(self._model), opening)
            stack.callback(opened.runtime.close)
            solvers = stack.enter_context(self._solvers(solver_nbytes(own)))
            calibrator = LayerCalibrator(opened, runs, room, folder, solvers)
            yield calibrator
            calibrator.finish()

    @contextmanager
    def _solvers(self, nbytes: int) -> Iterator[Workers[list[Problem], dict[str, Solution]]]:
        if self._ray is None:
            yield Here(Solver())
            return
        # As many threads as there are here: with others, sums may have other bits.
        threads = torch.get_num_threads()
        each = Placement(threads, nbytes)
        with spread(self._ray, each, Solving(threads), worker_facts(), never) as (workers, _):
            yield workers

    def _own(self, origin: Origin) -> list[ExpertBank]:
        """Banks of the component that is calibrated."""
        return [one.bank for key, one in sorted(origin.model.banks.items()) if key in self._source.num_experts]

    @property
    def _context(self) -> int:
        """Tokens of the longest forward pass."""
        return max((sum(map(len, run.ids)) for run in self._runs.runs), default=0) or DEFAULT_CONTEXT

    @cached_property
    def _component(self) -> str | None:
        said = self._opening
        return text_component(self._model, revision=said.revision, offline=said.offline, max_rate=said.max_rate)

    @cached_property
    def _source(self) -> ModelSource:
        opening = self._opening
        source = open_source(
            self._model,
            component=self._component,
            revision=opening.revision,
            offline=opening.offline,
            max_rate=opening.max_rate,
        )
        if not source.complete:
            raise UnsupportedError(
                f"{source.name} lacks some of its experts, and what the others are given depends on them.",
                advice="Calibrate the whole model, or quantise this one without calibration.",
            )
        if getattr(source.config, "is_encoder_decoder", False) or {key.component for key in source.num_experts} == {
            "talker"
        }:
            raise UnsupportedError(
                f"{source.model_class.__name__} does not read texts and go on with them.",
                advice="Quantise it without calibration.",
            )
        return source

    @cached_property
    def _runs(self) -> Runs:
        longest = model_context(self._source.config)
        context = min(DEFAULT_CONTEXT, longest or DEFAULT_CONTEXT)
        processors = Processors(self._source.directory)
        return plan_runs(self._material, processors, tokens=self._tokens, context=context, longest=longest)

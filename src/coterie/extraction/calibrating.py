"""What chooses the codes of experts by what they are given: the contract between writing a store and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from coterie.errors import UsageError
from coterie.origins import Origin
from coterie.quant import StoredMatrix
from coterie.quant.calibrated import MatrixError
from coterie.quant.scheme import Parts
from coterie.spec import BankKey, ExpertKey
from coterie.store import CalibrationFacts, RecordErrors, is_store
from coterie.store.manifest import MAX_ERROR, PARTS_OF_ONE, weight_share
from coterie.store.manifest_file import load_manifest


class Stopped(Exception):
    """Ends what a worker does when another one has failed, or all are interrupted; nobody else sees it."""


WeightsOf = Callable[[int], Mapping[str, tuple[StoredMatrix, torch.Tensor]]]
"""Expert → its matrices that are to be quantised, by name, each with its weights."""


class Calibrator(Protocol):
    """Chooses the codes of one store's experts, bank after bank in ascending order of key. For one thread."""

    def order(
        self, bank: BankKey, experts: Sequence[int], weights: WeightsOf, stopped: Callable[[], bool]
    ) -> Iterator[int]:
        """The experts of a bank in the order in which they are to be quantised.

        What was chosen for an expert is there once it has been given, until the next one is asked for.

        Args:
            bank: The bank.
            experts: Ids of those that are to be quantised.
            weights: Gives the matrices of each.
            stopped: Asked now and then whether to give up.

        Raises:
            Stopped: If it is to give up.
            QuantisationError: If a weight is not finite; names expert and parameter.
        """
        ...

    def chosen(self, key: ExpertKey, parameter: str) -> tuple[Parts, MatrixError] | None:
        """The content of a matrix's fields, and what it is off by; None if nothing is known of its inputs."""
        ...


class Calibration(Protocol):
    """What codes are to be chosen by, whatever the model."""

    def of(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        offline: bool = False,
        max_rate: str | int | None = None,
    ) -> ModelCalibration:
        """That of a model."""
        ...


class ModelCalibration(Protocol):
    """What the codes of a model's experts are to be chosen by."""

    def facts(self) -> CalibrationFacts:
        """What the store says about it."""
        ...

    def kept_nbytes(self, origin: Origin) -> int:
        """The most that :meth:`begin` keeps on the store's disk at a time.

        Raises:
            MemoryBudgetError: If there is too little memory to work.
        """
        ...

    def begin(self, origin: Origin, folder: Path) -> AbstractContextManager[Calibrator]:
        """Begins to work, or goes on after an interruption.

        Args:
            origin: What the store is made of.
            folder: Where it keeps what it has to; nothing is there at the end.
        """
        ...

    def clear(self, folder: Path) -> None:
        """Removes what an interrupted run kept, where nothing is left to do."""
        ...


def record_errors(errors: Mapping[str, MatrixError]) -> RecordErrors:
    """What a record is off by, as the manifest says it.

    Args:
        errors: Those of its matrices, by name.
    """
    output, nearest, whole = (
        sum(getattr(error, name) for error in errors.values()) for name in ("output", "nearest_output", "output_scale")
    )

    def share(part: float) -> int:
        return min(round(part / whole * PARTS_OF_ONE), MAX_ERROR) if whole > 0 else 0

    return RecordErrors(
        output=share(output),
        nearest=share(nearest),
        weights={name: weight_share(error.weight, error.weight_scale) for name, error in errors.items()},
    )


def check_changes(
    origin: Origin, scheme: str | Callable[[ExpertKey], str], chosen: Mapping[BankKey, Sequence[int]]
) -> None:
    """Refuses calibration where it could change nothing.

    Raises:
        UsageError: If no expert is to be quantised.
    """
    keys = (key.expert(e) for key, ids in chosen.items() for e in ids)
    if all((scheme if isinstance(scheme, str) else scheme(key)) == origin.scheme(key) for key in keys):
        raise UsageError(
            "Calibration chooses the codes of experts, and none are to be quantised.",
            advice="Say how experts are to be stored, such as --scheme int4, or leave the calibration out.",
        )


def calibration_facts(root: Path, origin: Origin, calibration: ModelCalibration) -> CalibrationFacts:
    """What a store will say about its calibration. Known before it is known how its experts are stored.

    Raises:
        UsageError: If the source is calibrated itself, or a finished store is there that was made otherwise.
        CoterieError: If the model cannot be calibrated, or a file that it is to be calibrated with cannot be used.
    """
    if origin.calibration is not None:
        raise UsageError(
            f"{origin.directory} is calibrated already; what its codes have lost would be taken for the model's own.",
            advice="Calibrate the checkpoint, or a store that is still native.",
            path=origin.directory,
        )
    facts = calibration.facts()
    if is_store(root) and load_manifest(root)[0].calibration != facts:
        raise UsageError(
            f"{root} is a finished store that was not made with this calibration.",
            advice="Write to another directory: codes that are there are never changed.",
            path=root,
        )
    return facts

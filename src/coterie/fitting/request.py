"""What a user asks of a fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import get_args

from coterie.calibration import DEFAULT_TOKENS, default_texts
from coterie.cluster.connection import check_ray
from coterie.errors import UsageError
from coterie.extraction.keeping import Keep
from coterie.extraction.pruning import PruneRanking
from coterie.fitting.held_out import digest
from coterie.profiles import ImportanceMeasure
from coterie.spec import parse_bytes
from coterie.spec.dense_schemes import DenseRequest
from coterie.survey import Material, without_repetitions

DEFAULT_LIMIT = 2048
"""Tokens that are scored of each domain where nobody says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRequest:
    """What is asked for; :func:`coterie.fit` describes each.

    Attributes:
        memory: The budget.
        context: Tokens that it provides for; None for what opening a model provides for.
        bits: Bits per weight; None to choose.
        keep: Experts of each layer that are not pruned, as :func:`coterie.prune` takes it; None to prune nothing.
        by: What decides which stay, likewise; None for ``reap``.
        ranking: Among which experts they are ranked, likewise; None for ``layer``.
        domains: Those that the store is for; empty for all.
        modalities: Those that have a say; empty for all that the model takes or makes.
        profile: An existing profile; None to record one.
        material: What it is recorded of, and codes are calibrated on.
        texts: What is scored; empty to hold it out of ``material``.
        exact_match: Files of questions.
        limit: The most tokens that are scored of each domain.
        calibration_tokens: Tokens of all domains together to record and calibrate with.
        dense_scheme: How linear layers outside experts are stored; None for the default.
        compare: Whether a uniform store is made, too.
        measure: Whether speed is measured.
        work_memory: Ceiling for the process while it works; None for ``memory``.
        against: The full model that stores are compared with; None for the one that they are made of.
        component: Only this part of a checkpoint.
        revision: Of a Hub repository.
        offline: Use only what is on this machine.
        threads: For compute.
        ray: Address of a Ray cluster whose workers record, calibrate and evaluate, each within the ceiling while it
            works; None to do all of it here. The result is the same.
    """

    memory: str | int
    context: int | None = None
    bits: float | None = None
    keep: str | int | None = None
    by: ImportanceMeasure | None = None
    ranking: PruneRanking | None = None
    domains: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    profile: str | Path | None = None
    material: Sequence[Material] = field(default_factory=default_texts)
    texts: Sequence[Material] = ()
    exact_match: tuple[Path, ...] = ()
    limit: int = DEFAULT_LIMIT
    calibration_tokens: int = DEFAULT_TOKENS
    dense_scheme: str | None = None
    compare: bool = True
    measure: bool = True
    work_memory: str | int | None = None
    against: str | Path | None = None
    component: str | None = None
    revision: str | None = None
    offline: bool = False
    threads: int | None = None
    ray: str | None = None

    def check(self) -> None:
        """Refuses what cannot be, whatever the model.

        Raises:
            UsageError: If a value is out of range, or there is nothing to record or to score.
            MissingPackageError: If a cluster is named, and Ray is not installed.
        """
        parse_bytes(self.memory, what="memory")
        if self.work_memory is not None:
            parse_bytes(self.work_memory, what="work memory")
        if self.bits is not None and not (isfinite(self.bits) and 0 < self.bits <= 64):
            raise UsageError(f"{self.bits} is not a number of bits per weight.", advice="Write it like 3.5.")
        self._check_pruning()
        for name in ("context", "limit", "calibration_tokens", "threads"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"{name} must be at least 1, not {number}.", got=number)
        if not any(one.kind == "text" for one in self.material):
            raise UsageError(
                "There is no text to calibrate with.",
                advice="Give texts (--calibrate DOMAIN=PATH), or leave it out for those that come with Coterie.",
            )
        if any(one.kind != "text" for one in self.texts):
            raise UsageError(
                "Divergence is measured on texts.", advice="Questions about sounds and pictures go to --exact-match."
            )
        DenseRequest.parse(self.dense_scheme)
        if self.ray is not None:
            check_ray("Workers of a cluster")

    def _check_pruning(self) -> None:
        if self.keep is not None:
            Keep.parse(self.keep)
        for name, value, known in (
            ("measure", self.by, get_args(ImportanceMeasure)),
            ("ranking", self.ranking, get_args(PruneRanking)),
        ):
            if value is None:
                continue
            if value not in known:
                raise UsageError.unknown(name, value, known)
            if self.keep is None:
                raise UsageError(
                    f"The {name} {value} says which experts are pruned, and none are to be pruned.",
                    advice="Say how many of each layer stay, such as --keep 75%, or leave it out.",
                )

    @property
    def prune_by(self) -> ImportanceMeasure:
        """What decides which experts stay."""
        return self.by or "reap"

    @property
    def prune_ranking(self) -> PruneRanking:
        """Among which experts they are ranked."""
        return self.ranking or "layer"

    @property
    def memory_nbytes(self) -> int:
        """The budget in bytes."""
        return parse_bytes(self.memory, what="memory")

    @property
    def work_nbytes(self) -> int:
        """The ceiling while it works, in bytes."""
        return parse_bytes(self.memory if self.work_memory is None else self.work_memory, what="work memory")

    def settings(self, model: str, profile: str) -> dict[str, str]:
        """What decides the result, each as a text: equal if and only if a stage that is finished can be used again.

        Args:
            model: Fingerprint of the model.
            profile: That of what decides in the profile that was given; empty if none was.
        """
        return {
            "model": model,
            "component": str(self.component),
            "profile": profile or "recorded",
            "calibration": _digest_of(self.material),
            "calibration tokens": str(self.calibration_tokens),
            "memory": str(self.memory_nbytes),
            "context": str(self.context),
            "bits": str(self.bits),
            "domains": ",".join(self.domains),
            "modalities": ",".join(self.modalities),
            "dense scheme": str(self.dense_scheme),
            "pruning": self._pruning(),
            "compare": str(self.compare),
            "full model": str(self.against),
            "texts apart": str(bool(self.texts)),
            "texts": _digest_of(self.texts) if self.texts else "held out",
            "questions": ",".join(digest(path)[:16] for path in self.exact_match),
            "limit": str(self.limit),
            "speed": str(self.measure),
        }

    def _pruning(self) -> str:
        """What decides which experts are pruned, but for the profile."""
        if self.keep is None:
            return "None"
        kinds = f"domains {','.join(self.domains)}, modalities {','.join(self.modalities)}"
        return f"keep {self.keep} by {self.prune_by}, ranked by {self.prune_ranking}, {kinds}"


def _digest_of(material: Sequence[Material]) -> str:
    files = [(one.kind, one.domain, digest(one.path)) for one in without_repetitions(material)]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()

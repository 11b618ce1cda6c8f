"""What a question is about: a model as it is, a store of it that is not made yet, and the other precisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coterie.checkpoint import Checkpoint
from coterie.errors import CoterieError
from coterie.extraction.whole import plan_whole
from coterie.hf.configs import has_talker
from coterie.inspection.contents import Contents, checkpoint_contents, has_its_schemes, store_contents
from coterie.origins import CheckpointOrigin
from coterie.origins.store_or_checkpoint import find_model
from coterie.origins.store_place import StorePlace
from coterie.planner.known_models import known_divergence
from coterie.planner.machine import Tell
from coterie.planner.subject import Subject
from coterie.records.remote import RateLimit
from coterie.spec import SCHEME_NAMES
from coterie.spec.encodings import NATIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked about.

    Attributes:
        name: As a command takes it.
        contents: What it holds, or would.
        planned: Whether it is a store that is not made yet.
        checkpoint: The checkpoint, if it is one, or would be made from one.
        place: Where experts are read from, or would be.
    """

    name: str
    contents: Contents
    planned: bool
    checkpoint: Checkpoint | None
    place: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherPrecision:
    """A precision in which a checkpoint could be stored."""

    scheme: str
    dense_scheme: str
    store_nbytes: int
    subject: Subject


def open_asked(
    model: str | Path,
    *,
    component: str | None = None,
    scheme: str | None = None,
    dense_scheme: str | Mapping[str, str] | None = None,
    revision: str | None = None,
    offline: bool = False,
    max_rate: str | int | None = None,
) -> Asked:
    """Reads manifests and headers; the arguments are those of :func:`coterie.planner.plan` and :func:`coterie.load`."""
    found = find_model(model, revision=revision, offline=offline, rate=RateLimit.of(max_rate))
    wanted = scheme is not None or dense_scheme is not None
    if isinstance(found, StorePlace):
        if wanted:
            raise has_its_schemes(found)
        contents = store_contents(found, component)
        return Asked(name=str(model), contents=contents, planned=False, checkpoint=None, place=found.directory)
    checkpoint = Checkpoint.open(found, component=component)
    plan = plan_whole(CheckpointOrigin(checkpoint), scheme, dense_scheme) if wanted else None
    return Asked(
        name=str(model),
        contents=checkpoint_contents(checkpoint, plan),
        planned=wanted,
        checkpoint=checkpoint,
        place=Path() if wanted else checkpoint.location.directory,
    )


def other_precisions(asked: Asked, experts_per_token: int | None, tell: Tell) -> list[OtherPrecision]:
    """The precisions in which a store of the checkpoint could be made, the largest first.

    Of lossy ones those whose loss was measured: nobody can choose another by what is said of it.
    """
    if asked.checkpoint is None:
        return []
    speaks = has_talker(asked.checkpoint.skeleton.config)
    found = []
    for scheme in reversed(SCHEME_NAMES):
        # Where a model speaks, its parts have schemes of their own by default.
        rest = (None,) if speaks or scheme == NATIVE else (NATIVE, "int8", scheme)
        if scheme != NATIVE and known_divergence(scheme, NATIVE) is None:
            continue
        for dense in dict.fromkeys(rest):
            tell(f"reading headers for {scheme}")
            try:
                plan = plan_whole(CheckpointOrigin(asked.checkpoint), scheme, dense)
                contents = checkpoint_contents(asked.checkpoint, plan)
            except CoterieError:
                continue  # what the checkpoint has fewer bits than, or cannot be stored in
            found.append(
                OtherPrecision(
                    scheme=scheme,
                    dense_scheme=contents.report.dense_scheme,
                    store_nbytes=contents.report.disk_nbytes,
                    subject=Subject.of(contents, experts_per_token=experts_per_token),
                )
            )
    return found


def download_nbytes(asked: Asked) -> int:
    """Bytes of the checkpoint that are not on this machine."""
    if asked.checkpoint is None:
        return 0
    paths = {info.path for info in asked.checkpoint.tensors_in_use}
    return sum(asked.checkpoint.location.download_nbytes(paths).values())


def schemes_of(contents: Contents) -> str:
    """The schemes of the experts that a model holds, in one word or several."""
    return ", ".join(sorted({scheme for bank in contents.report.banks for scheme in bank.schemes})) or NATIVE

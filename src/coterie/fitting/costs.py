"""What a fit will do, and what each stage will take, before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coterie.extraction.dense import dense_tensors
from coterie.files.plain_values import to_plain
from coterie.fitting.making import Source
from coterie.fitting.pruning import KeptShares
from coterie.fitting.report import Sizing
from coterie.fitting.work import ARTIFACTS

FIT_PLAN_SCHEMA_VERSION = 1

_LOGIT_NBYTES = 4
_LEAST_BYTES_PER_TOKEN = 2
"""Of a text: no text has more tokens than this allows."""
_STATES = 2
"""Hidden states of a layer, and of the one before, that calibration keeps on disk."""

WORDS: Mapping[str, str] = {
    "profile": "run the model over texts, and record what its experts do",
    "prune": "make the model without the experts that matter least",
    "profile-pruned": "run the pruned model over the same texts, and record what its experts do",
    "plan": "decide how many bits experts get for the memory",
    "store": "allocate the bits, choose the codes by calibration, write the store",
    "verify": "check every checksum, and compare the store with the model",
    "uniform": "make a store of the same size with equal bits for all, to compare with",
    "evaluate": "measure both against the full model on text that was held out",
    "speed": "measure how fast the store runs in the memory",
}
"""Stage → what it does, in the order of the stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage.

    Attributes:
        name: Its name.
        what: What it does.
        finished: Whether an earlier run has finished it.
        disk_nbytes: About what it puts on the disk, at most.
        memory_nbytes: What the process may hold while it goes on.
        kept: Whether what it makes is still there at the end.
    """

    name: str
    what: str
    finished: bool
    disk_nbytes: int
    memory_nbytes: int
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """What would be done.

    Attributes:
        schema_version: Version of this structure when written as JSON.
        model: What the store would be made of.
        store: The directory.
        work: Where unfinished work would be.
        memory: The budget in bytes.
        context: Tokens that it provides for.
        sizing: How large experts would be, and why.
        scored: Domain → bytes of the text that would be scored.
        scored_media: Sounds and pictures of a domain → how many there are to score.
        not_scored: Domains of which there is no text to score.
        stages: In order.
    """

    schema_version: int = FIT_PLAN_SCHEMA_VERSION
    model: str
    store: str
    work: str
    memory: int
    context: int
    sizing: Sizing
    scored: Mapping[str, int]
    scored_media: Mapping[str, int]
    not_scored: tuple[str, ...]
    stages: tuple[StagePlan, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = to_plain(asdict(self))
        return plain


def stage_plans(
    source: Source, sizing: Sizing, kept: KeptShares, scored: Mapping[str, Path], finished: set[str]
) -> list[StagePlan]:
    """The stages of a fit with what each takes.

    Args:
        source: What the store is made of.
        sizing: How large it will be.
        kept: What is left of the model's experts.
        scored: Domain → text that is scored.
        finished: Names of stages that an earlier run has finished.
    """
    request, config = source.request, source.origin.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    width, rows = int(getattr(text, "hidden_size", 0) or 0), int(getattr(text, "vocab_size", 0) or 0)
    tokens = sum(min(request.limit, path.stat().st_size // _LEAST_BYTES_PER_TOKEN) for path in scored.values())
    states = _STATES * request.calibration_tokens * width * 2
    disk = {
        "prune": _pruned_nbytes(source, kept),
        "store": sizing.store_nbytes + states,
        "uniform": sizing.store_nbytes,
        "evaluate": tokens * rows * _LOGIT_NBYTES,
    }
    names = [name for name in ARTIFACTS if name in wanted_stages(source)]
    return [
        StagePlan(
            name=name,
            what=WORDS[name],
            finished=name in finished,
            disk_nbytes=disk.get(name, 0),
            memory_nbytes=request.memory_nbytes if name == "speed" else request.work_nbytes,
            kept=name == "store",
        )
        for name in names
    ]


def wanted_stages(source: Source) -> tuple[str, ...]:
    """The stages of a fit, in order."""
    request = source.request
    left_out = {
        "prune": request.keep is None,
        "profile-pruned": request.keep is None,
        "profile": request.profile is not None,
        "uniform": not request.compare,
        "speed": not request.measure,
    }
    return tuple(name for name in ARTIFACTS if not left_out.get(name, False))


def _pruned_nbytes(source: Source, kept: KeptShares) -> int:
    """Bytes of a pruned store, which has the bits of the model; 0 if there is to be none."""
    if source.request.keep is None:
        return 0
    origin = source.origin
    experts = sum(bank.layout.nbytes * bank.bank.num_experts for bank in origin.model.banks.values())
    return int(kept.every * experts) + sum(tensor.nbytes for tensor in dense_tensors(origin, origin.dense_schemes))

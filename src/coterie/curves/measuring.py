"""One point: the model as a setting has it, beside the full one, over the texts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from coterie.curves.choosing import Chosen
from coterie.curves.points import CurvePoint
from coterie.curves.settings import Setting
from coterie.engine.alteration import Alteration, origin_of
from coterie.engine.memory import plan_for
from coterie.errors import UsageError
from coterie.evaluate.evaluation import ProgressCallback
from coterie.evaluate.memory import workspace_nbytes
from coterie.evaluate.planning import input_tokens
from coterie.evaluate.running import evaluate_opening
from coterie.evaluate.subject import Subject
from coterie.extraction.expert_schemes import ExpertSchemes
from coterie.extraction.extraction import extract
from coterie.extraction.requantising import quantize
from coterie.hf.banks import ExpertBank
from coterie.origins.store_or_checkpoint import find_model
from coterie.origins.store_place import StorePlace
from coterie.plan.machine import default_memory_budget
from coterie.spec import BankKey, parse_bytes, share_nbytes
from coterie.spec.encodings import NATIVE
from coterie.spec.opening import Opening
from coterie.spec.parameters import weight_count

LOGITS, STORES, WINDOWS = "logits", "store-", "windows-"
"""What is in the directory of a curve that is not finished: names, or how they begin."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all points of a curve share.

    Attributes:
        model: The model that is varied.
        against: The full model.
        texts: Name → path.
        opening: How models are opened, but for what a setting says.
        context: As of :func:`coterie.evaluate.evaluate`.
        stride: Likewise.
        limit: Likewise.
        work: A directory for what is needed until points are finished: logits of the full model, windows of the point
            that is under way, a store of what does not fit in memory.
        reference: Where logits of the full model are kept; by default in ``work``.
        ray: Address of a cluster whose workers compute; None to compute here.
    """

    model: str | Path
    against: str | Path
    texts: Mapping[str, Path]
    opening: Opening
    context: int | None
    stride: int | None
    limit: int | None
    work: Path
    reference: Path | None
    ray: str | None = None

    @cached_property
    def subject(self) -> Subject:
        """The model as it is."""
        return Subject(path=self.model, opening=self.opening)

    @cached_property
    def full(self) -> Subject:
        """The full model."""
        return Subject(path=self.against, opening=self.opening)

    @cached_property
    def banks(self) -> Mapping[BankKey, ExpertBank]:
        """The banks of the model, or of its component that is opened."""
        source = self.subject.source
        found = origin_of(source).model.banks
        return {key: found[key].bank for key in sorted(source.num_experts)}

    def texts_of(self, setting: Setting) -> dict[str, Path]:
        """The texts that a point is measured with."""
        if setting.text is None:
            return dict(self.texts)
        return {setting.text: self.texts[setting.text]}

    def opening_of(self, setting: Setting, chosen: Chosen | None) -> Opening:
        """How a point's model is opened."""
        return replace(
            self.opening,
            missing=None if chosen is None else setting.missing,
            experts_per_token=setting.experts_per_token,
            drop_cold=setting.drop_cold or None,
        )

    def altered(self, setting: Setting, chosen: Chosen | None) -> Subject:
        """A point's model."""
        schemes = setting.scheme if setting.expert_schemes is None else ExpertSchemes.read(setting.expert_schemes)
        alteration = None
        if chosen is not None or schemes is not None:
            alteration = Alteration(experts=chosen, schemes=schemes)
        return Subject(
            path=self.model if setting.store is None else setting.store,
            opening=self.opening_of(setting, chosen),
            alteration=alteration,
            in_steps=setting.in_steps,
        )

    def key(self, setting: Setting, subject: Subject) -> str:
        """What is equal for two points if and only if their figures are."""
        said = {
            "model": subject.fingerprint,
            "texts": sorted(self.texts_of(setting)),
            "missing": subject.opening.missing,
            "experts_per_token": setting.experts_per_token,
            "drop_cold": setting.drop_cold,
            "cache": subject.cache_settings if setting.in_steps else None,
        }
        return json.dumps(said, sort_keys=True)


def measure_point(task: Task, setting: Setting, subject: Subject, progress: ProgressCallback | None) -> CurvePoint:
    """Measures a point; goes on with one that was interrupted.

    Args:
        task: What all points share.
        setting: What is changed.
        subject: The model with that: from :meth:`Task.altered`.
        progress: Told after every window.

    Raises:
        CoterieError: As evaluating and quantising do.
    """
    texts = task.texts_of(setting)
    with _stored(task, setting, subject) as path:
        # The windows of a temporary store are another evaluation's.
        name = f"{_windows(task, setting, subject)}{'' if path is None else '-stored'}.jsonl"
        alteration = subject.alteration if path is None else None
        found = evaluate_opening(
            subject.path if path is None else path,
            list(texts.values()),
            subject.opening,
            against=task.against,
            reference=_reference(task, setting),
            context=task.context,
            stride=task.stride,
            limit=task.limit,
            alteration=alteration,
            in_steps=setting.in_steps,
            journal=task.work / name,
            ray=task.ray,
            progress=progress,
        )
    assert found.total is not None, "there are texts"
    named = tuple(replace(text, name=name) for text, name in zip(found.texts, texts, strict=True))
    sizes = _Sizes.of(subject, task.banks, setting.experts_per_token)
    return CurvePoint(
        setting=setting,
        experts=found.model.experts,
        total_experts=found.model.total_experts,
        expert_nbytes=sizes.experts,
        bits=sizes.bits,
        token_nbytes=sizes.token,
        reads=found.reads,
        total=found.total,
        texts=named,
        calibrated_on=found.calibrated_on,
    )


def reference_directory(task: Task, setting: Setting) -> Path:
    """Where the full model's logits are that a point is compared with."""
    which = "all" if setting.text is None else _digest(setting.text)
    return (task.reference or task.work / LOGITS) / (f"{which}-in-steps" if setting.in_steps else which)


def _reference(task: Task, setting: Setting) -> Path:
    path = reference_directory(task, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """Bytes of experts that are there, bits of their weights, and bytes of those that one token uses."""

    experts: int
    bits: float
    token: int

    @classmethod
    def of(cls, subject: Subject, banks: Mapping[BankKey, ExpertBank], experts_per_token: int | None) -> _Sizes:
        source = subject.source
        records: dict[BankKey, list[int]] = defaultdict(list)
        stored = weights = 0
        for key in source.experts.keys():
            if key.bank_key in banks:
                layout = source.experts.layout(key)
                records[key.bank_key].append(layout.nbytes)
                stored += sum(field.nbytes for field in layout.fields)
                weights += weight_count(layout)
        token = 0.0
        for bank, sizes in records.items():
            token += min(experts_per_token or banks[bank].choices or 1, len(sizes)) * sum(sizes) / len(sizes)
        return cls(
            experts=sum(sum(sizes) for sizes in records.values()),
            bits=8 * stored / weights if weights else 0.0,
            token=round(token),
        )


def _windows(task: Task, setting: Setting, subject: Subject) -> str:
    """How the names begin of what keeps a point's finished windows."""
    return f"{WINDOWS}{_digest(task.key(setting, subject))}"


def forget_windows(task: Task, setting: Setting, subject: Subject) -> None:
    """Removes what keeps a point's windows; once the point itself is kept."""
    for path in task.work.glob(f"{_windows(task, setting, subject)}*.jsonl"):
        path.unlink(missing_ok=True)


def clear(work: Path) -> None:
    """Removes from a directory what measuring puts there, and nothing else."""
    shutil.rmtree(work / LOGITS, ignore_errors=True)
    for path in work.glob(f"{STORES}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in work.glob(f"{WINDOWS}*.jsonl"):
        path.unlink(missing_ok=True)


def check_subject(task: Task, setting: Setting, subject: Subject) -> None:
    """Refuses what cannot be measured, before anything is.

    A store that is another model's would be compared with tokens of the same kind, and mean nothing.

    Args:
        task: What all points share.
        setting: What is changed.
        subject: The model with that.

    Raises:
        UsageError: If a store is of another model, or partial.
        CoterieError: As opening a store, and reading schemes, do.
    """
    if setting.expert_schemes is not None:
        subject.source.close()  # opened to see whether it has as many bits
    if setting.store is None:
        return
    if subject.source.identity != task.subject.source.identity:
        raise UsageError(
            f"{setting.store} is a store of another model than {task.model}.",
            advice="Name stores that were made from it, by coterie extract or coterie quantize.",
            store=setting.store,
        )
    if not subject.source.complete:
        raise UsageError(
            f"{setting.store} is a partial store.",
            advice="Vary the coverage of a complete one instead.",
            store=setting.store,
        )


@contextmanager
def _stored(task: Task, setting: Setting, subject: Subject) -> Iterator[Path | None]:
    """A store of the model in its schemes while it is needed, where quantised experts do not all fit in memory.

    There they would be quantised again each time they are read. It is removed once the point is finished.
    """
    if (setting.scheme is None and setting.expert_schemes is None) or _fits(task, subject):
        yield None
        return
    path = task.work / f"{STORES}{_digest(task.key(setting, subject))}"
    said = task.opening
    if not isinstance(find_model(task.model, revision=said.revision, offline=said.offline), StorePlace):
        extract(
            task.model,
            path,
            component=subject.source.component,
            scheme=setting.scheme,
            expert_schemes=setting.expert_schemes,
            dense_scheme=NATIVE,
            offline=said.offline,
            # Every setting reads it again.
            keep_download=True,
        )
    else:
        quantize(
            task.model,
            path,
            scheme=setting.scheme,
            expert_schemes=setting.expert_schemes,
            offline=said.offline,
        )
    yield path
    shutil.rmtree(path)


def _fits(task: Task, subject: Subject) -> bool:
    """Whether all experts will be in memory once they were read."""
    source, said = subject.source, task.opening
    wanted = None
    if said.expert_memory is not None:
        wanted = share_nbytes(said.expert_memory, source.footprint.all_experts, "expert_memory")
        if wanted < source.footprint.experts or said.memory is None:
            return wanted >= source.footprint.experts
    inputs = input_tokens(subject, task.full, task.context)
    budget = default_memory_budget() if said.memory is None else parse_bytes(said.memory, what="memory")
    budget -= workspace_nbytes(source, inputs, models=2)
    return plan_for(source, max(budget, 0), inputs, loaded=False).arena >= source.footprint.experts


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

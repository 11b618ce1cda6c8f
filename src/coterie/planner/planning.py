"""From a question about a model to a plan."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coterie.checkpoint import Checkpoint
from coterie.errors import CoterieError, UsageError
from coterie.eviction import check_policy
from coterie.extraction.whole import plan_whole
from coterie.files.naming import resolve_path
from coterie.files.nearest import nearest_directory
from coterie.hf.configs import has_talker
from coterie.inspection.contents import Contents, checkpoint_contents, has_its_schemes, store_contents
from coterie.origins import CheckpointOrigin
from coterie.origins.store_or_checkpoint import store_path
from coterie.plan.machine import default_memory_budget, memory_limits
from coterie.planner import words
from coterie.planner.forecast import Forecast
from coterie.planner.hit_rates import HitRates, Law
from coterie.planner.known_models import known_divergence, known_hit_rates
from coterie.planner.machine import Machine, Tell, measure_machine
from coterie.planner.report import BudgetPlan, DiskNeed, Plan, PrecisionPlan
from coterie.planner.speed import preparing_s
from coterie.planner.subject import Subject
from coterie.spec import DEFAULT_POLICY, SCHEME_NAMES, parse_bytes
from coterie.spec.encodings import NATIVE
from coterie.store import Store

PROMPT_TOKENS = 256
ANSWER_TOKENS = 270
"""About 200 words of English."""


def plan(
    model: str | Path,
    *,
    memory: str | int | Sequence[str | int] | None = None,
    context: int | None = None,
    disk: str | Path | None = None,
    component: str | None = None,
    scheme: str | None = None,
    dense_scheme: str | Mapping[str, str] | None = None,
    experts_per_token: int | None = None,
    eviction: str = DEFAULT_POLICY,
    prompt_tokens: int = PROMPT_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
    machine: Machine | None = None,
    measure: bool = True,
    revision: str | None = None,
    offline: bool = False,
    tell: Tell = lambda _line: None,
) -> Plan:
    """Says what a model would take and how fast it would run. Reads manifests and headers, no expert.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``.
        memory: A budget for the whole process, such as ``"8GiB"``, or several. Default: what this machine allows.
        context: Tokens to provide for; default: as :func:`coterie.load` would.
        disk: A directory on the disk where the store would lie. Default: where the model lies, or the current one.
        component: Only this part of a whole model, such as ``thinker``.
        scheme: Of a checkpoint: plan for a store whose experts are stored so.
        dense_scheme: Likewise, of linear layers outside experts.
        experts_per_token: Plan for another number of experts per token than the model was trained for.
        eviction: The policy.
        prompt_tokens: Tokens of the prompt that times are for.
        answer_tokens: Tokens of the answer.
        machine: What was measured of the machine that is meant; default: this one is measured, which takes seconds.
        measure: Whether to measure where no machine is given. If not, nothing is said about speed.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.
        tell: Called with a line about what is being done.

    Raises:
        StoreError: If the store is unfinished or damaged.
        CheckpointError: If the checkpoint is not complete and consistent.
        UsageError: If a budget is not a size, a number is out of range, the model has no such component, there is no
            such scheme or policy, or a store is to be looked at as if it had another scheme.
    """
    check_policy(eviction, profile=False)
    for name, number in (("context", context), ("prompt_tokens", prompt_tokens), ("answer_tokens", answer_tokens)):
        if number is not None and number < 1:
            raise UsageError(f"{name} must be at least 1, not {number}.", got=number)
    given = () if memory is None else (memory,) if isinstance(memory, str | int) else tuple(memory)
    budgets = [parse_bytes(budget, what="memory") for budget in given] or [default_memory_budget()]
    tell("reading headers")
    asked = _open(model, component, scheme, dense_scheme, revision, offline)
    subject = Subject.of(asked.contents, experts_per_token=experts_per_token)
    _check_experts_per_token(experts_per_token, subject)
    others = _other_precisions(asked, experts_per_token, tell)
    place = nearest_directory(asked.place if disk is None else Path(disk))
    if machine is None and measure:
        precisions = {one.expert_precision for one in (subject, *(other.subject for other in others))}
        linears = {name for one in (subject, *(other.subject for other in others)) for name in one.dense}
        machine = measure_machine(
            place, record=int(subject.record), precisions=sorted((precisions | linears) - {NATIVE}), tell=tell
        )
    hit_rates = known_hit_rates(subject, eviction) or Law(experts=subject.experts, eviction=eviction)
    forecast = Forecast(
        subject=subject,
        hit_rates=hit_rates,
        context=context or asked.contents.context,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        machine=machine,
    )
    report = asked.contents.report
    runs = words.store_name(asked.name, scheme or NATIVE) if asked.planned else asked.name

    def command(budget: int) -> str:
        return words.chat_command(
            runs,
            memory=budget,
            context=context,
            component=None if asked.planned else component,
            experts_per_token=experts_per_token,
            eviction=None if eviction == DEFAULT_POLICY else eviction,
            revision=None if asked.planned else revision,
        )

    all_experts = forecast.all_experts()
    return Plan(
        model=report.model,
        planned=asked.planned,
        scheme=_schemes(asked.contents),
        dense_scheme=report.dense_scheme,
        dense_parts=report.dense_parts,
        component=subject.component,
        working_set_nbytes=subject.working_set,
        expert_nbytes=subject.expert_nbytes,
        context=forecast.context,
        longest_context=asked.contents.longest_context,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        eviction=eviction,
        experts_per_token=experts_per_token,
        machine=machine,
        attainable=memory_limits().attainable,
        budgets=tuple(_budget(forecast, budget, asked.contents.longest_context, command(budget)) for budget in budgets),
        precisions=tuple(_precision(other, forecast, hit_rates, budgets[0]) for other in others),
        disk=_disk_need(asked, place, machine),
        all_experts=all_experts,
        knee=forecast.knee(all_experts),
        preparing=_preparing(asked, runs, scheme, dense_scheme, component, revision),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
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
class _Other:
    """A precision in which a checkpoint could be stored."""

    scheme: str
    dense_scheme: str
    store_nbytes: int
    subject: Subject


def _open(
    model: str | Path,
    component: str | None,
    scheme: str | None,
    dense_scheme: str | Mapping[str, str] | None,
    revision: str | None,
    offline: bool,
) -> _Asked:
    path = store_path(model)
    wanted = scheme is not None or dense_scheme is not None
    if path is not None:
        if wanted:
            raise has_its_schemes(path)
        contents = store_contents(Store.open(path), component)
        return _Asked(name=str(model), contents=contents, planned=False, checkpoint=None, place=path)
    checkpoint = Checkpoint.open(resolve_path(model), component=component, revision=revision, offline=offline)
    plan = plan_whole(CheckpointOrigin(checkpoint), scheme, dense_scheme) if wanted else None
    return _Asked(
        name=str(model),
        contents=checkpoint_contents(checkpoint, plan),
        planned=wanted,
        checkpoint=checkpoint,
        place=Path() if wanted else checkpoint.location.directory,
    )


def _preparing(
    asked: _Asked,
    store: str,
    scheme: str | None,
    dense_scheme: str | Mapping[str, str] | None,
    component: str | None,
    revision: str | None,
) -> tuple[str, ...]:
    """The commands before the model can be used."""
    if not asked.planned:
        return ()
    dense = asked.contents.report.dense_scheme if isinstance(dense_scheme, Mapping) else dense_scheme
    line = words.extract_command(
        asked.name, store, scheme=scheme or NATIVE, dense_scheme=dense, component=component, revision=revision
    )
    return (line,)


def _check_experts_per_token(wanted: int | None, subject: Subject) -> None:
    if wanted is not None and not 1 <= wanted <= subject.experts:
        raise UsageError(
            f"experts_per_token={wanted} is out of range: a layer has {subject.experts:.0f} experts.",
            advice=f"Give a number from 1 to {subject.experts:.0f}.",
            got=wanted,
        )


def _other_precisions(asked: _Asked, experts_per_token: int | None, tell: Tell) -> list[_Other]:
    """The precisions in which a store of the checkpoint could be made, the largest first."""
    if asked.checkpoint is None:
        return []
    speaks = has_talker(asked.checkpoint.skeleton.config)
    found = []
    for scheme in reversed(SCHEME_NAMES):
        # Where a model speaks, its parts have schemes of their own by default.
        rest = (None,) if speaks or scheme == NATIVE else (NATIVE, "int8", scheme)
        for dense in dict.fromkeys(rest):
            tell(f"reading headers for {scheme}")
            try:
                plan = plan_whole(CheckpointOrigin(asked.checkpoint), scheme, dense)
                contents = checkpoint_contents(asked.checkpoint, plan)
            except CoterieError:
                continue  # what the checkpoint has fewer bits than, or cannot be stored in
            found.append(
                _Other(
                    scheme=scheme,
                    dense_scheme=contents.report.dense_scheme,
                    store_nbytes=contents.report.disk_nbytes,
                    subject=Subject.of(contents, experts_per_token=experts_per_token),
                )
            )
    return found


def _budget(forecast: Forecast, memory: int, longest: int | None, command: str) -> BudgetPlan:
    fit = forecast.fit(memory)
    share = forecast.share(fit) if fit.enough else 0.0
    hits = forecast.hits(share) if fit.enough else None
    working_set = forecast.subject.working_set
    return BudgetPlan(
        memory=fit,
        why_not=words.why_not(fit, forecast.subject.footprint),
        share=share,
        hit_rate=hits,
        read_per_token=None if hits is None else hits.miss.map(lambda miss: miss * working_set),
        speed=forecast.speed(share) if fit.enough else None,
        largest_context=forecast.largest_context(memory, longest),
        gains=forecast.gains(memory, share) if fit.enough else (),
        command=command,
    )


def _precision(other: _Other, forecast: Forecast, hit_rates: HitRates, memory: int) -> PrecisionPlan:
    there = replace(forecast, subject=other.subject, hit_rates=hit_rates)
    fit = there.fit(memory)
    share = there.share(fit) if fit.enough else 0.0
    speed = there.speed(share) if fit.enough else None
    return PrecisionPlan(
        scheme=other.scheme,
        dense_scheme=other.dense_scheme,
        store_nbytes=other.store_nbytes,
        minimum=fit.minimum,
        share=share,
        tokens_per_second=None if speed is None else speed.tokens_per_second,
        divergence=known_divergence(other.scheme, other.dense_scheme),
    )


def _disk_need(asked: _Asked, place: Path, machine: Machine | None) -> DiskNeed:
    free = shutil.disk_usage(place).free
    checkpoint, report = asked.checkpoint, asked.contents.report
    used = () if checkpoint is None else checkpoint.tensors_in_use
    download = 0
    if checkpoint is not None:
        download = sum(checkpoint.location.download_nbytes({info.path for info in used}).values())
    store = report.disk_nbytes if asked.planned else 0
    seconds = None
    if asked.planned and machine is not None:
        read = sum(info.nbytes for info in used)
        lossy = _schemes(asked.contents) != NATIVE
        seconds = preparing_s(machine, read=read, written=store, quantised=lossy)
    return DiskNeed(
        path=str(place),
        free_nbytes=free,
        download_nbytes=download,
        store_nbytes=store,
        enough=download + store <= free,
        preparing_s=seconds,
    )


def _schemes(contents: Contents) -> str:
    return ", ".join(sorted({scheme for bank in contents.report.banks for scheme in bank.schemes})) or NATIVE

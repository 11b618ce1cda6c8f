"""From a question about a model to a plan."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from coterie.errors import UsageError
from coterie.eviction import check_policy
from coterie.files.nearest import nearest_directory
from coterie.inspection.what_fits import process_nbytes
from coterie.plan.machine import default_memory_budget, memory_limits
from coterie.planner import words
from coterie.planner.asked import Asked, OtherPrecision, download_nbytes, open_asked, other_precisions, schemes_of
from coterie.planner.basis import MISSING, by_probe, by_profile, check_basis, domain_plans, without_text
from coterie.planner.forecast import Forecast
from coterie.planner.known_models import known_divergence
from coterie.planner.machine import Machine, Tell, measure_machine, silent
from coterie.planner.probe import PROBE_TOKENS
from coterie.planner.report import BudgetPlan, DiskNeed, Plan, PrecisionPlan
from coterie.planner.speed import preparing_s
from coterie.planner.subject import Subject
from coterie.spec import DEFAULT_POLICY, parse_bytes
from coterie.spec.defaults import PLANNED_ANSWER_TOKENS, PLANNED_PROMPT_TOKENS
from coterie.spec.encodings import NATIVE
from coterie.spec.opening import Opening


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
    prompt_tokens: int = PLANNED_PROMPT_TOKENS,
    answer_tokens: int = PLANNED_ANSWER_TOKENS,
    probe: str | None = None,
    profile: str | Path | None = None,
    domains: Sequence[str] = (),
    machine: Machine | None = None,
    measure: bool = True,
    revision: str | None = None,
    offline: bool = False,
    tell: Tell | None = None,
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
        probe: A text of yours: its first 128 tokens go through the model, and their routing is replayed for every
            budget. The model's weights have to be on this machine.
        profile: A profile of the model: the hit rate is that of the domains that it knows, of the one that misses most.
        domains: With ``profile``: only these, such as ``["code"]``.
        machine: What was measured of the machine that is meant; default: this one is measured, which takes seconds.
        measure: Whether to measure where no machine is given. If not, nothing is said about speed.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.
        tell: Called with a line about what is being done.

    Raises:
        StoreError: If the store is unfinished or damaged.
        CheckpointError: If the checkpoint is not complete and consistent.
        UsageError: If a budget is not a size, a number is out of range, the model has no such component, there is no
            such scheme or policy, a store is to be looked at as if it had another scheme, a probe has too few tokens,
            or its model is not on this machine, domains are named without a profile, or too little was recorded of one.
        ProfileError: If the profile cannot be used, or is about another model.
    """
    check_policy(eviction, profile=profile is not None)
    for name, number in (("context", context), ("prompt_tokens", prompt_tokens), ("answer_tokens", answer_tokens)):
        if number is not None and number < 1:
            raise UsageError(f"{name} must be at least 1, not {number}.", got=number)
    check_basis(probe, profile, domains)
    given = () if memory is None else (memory,) if isinstance(memory, str | int) else tuple(memory)
    budgets = [parse_bytes(budget, what="memory") for budget in given] or [default_memory_budget()]
    tell = tell or silent
    tell("reading headers")
    asked = open_asked(
        model, component=component, scheme=scheme, dense_scheme=dense_scheme, revision=revision, offline=offline
    )
    subject = Subject.of(asked.contents, experts_per_token=experts_per_token)
    _check_experts_per_token(experts_per_token, subject)
    process = process_nbytes()
    others = other_precisions(asked, experts_per_token, tell)
    place = nearest_directory(asked.place if disk is None else Path(disk))
    if machine is None and measure:
        machine = _measured(place, [subject, *(other.subject for other in others)], tell)
    made = Forecast(
        subject=subject,
        hit_rates=without_text(subject, eviction),
        context=context or asked.contents.context,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        machine=machine,
        process=process,
    )
    # Where the model runs in no budget, there are no hits to forecast, and a probe could not run either.
    if probe is not None and any(made.fit(budget).enough for budget in budgets):
        tell("running the probe's text through the model")
        opening = Opening(
            memory=min(max(budgets), default_memory_budget()),
            component=component,
            experts_per_token=experts_per_token,
            max_context=PROBE_TOKENS,
            revision=revision,
            offline=offline,
        )
        made = replace(made, hit_rates=by_probe(asked, probe, opening, subject, eviction))
    if profile is not None:
        made = replace(made, hit_rates=by_profile(asked, profile, domains, subject, eviction))
    report = asked.contents.report
    runs = words.store_name(asked.name, scheme or NATIVE) if asked.planned else asked.name

    def command(budget: int) -> str:
        return words.chat_command(
            runs,
            {
                "--memory": words.exact_size(budget),
                "--max-context": context,
                "--missing": None if asked.planned or report.complete else MISSING,
                "--component": None if asked.planned else component,
                "--experts-per-token": experts_per_token,
                "--eviction": None if eviction == DEFAULT_POLICY else eviction,
                "--profile": profile,
                "--warm": domains[0] if len(domains) == 1 else None,
                "--revision": None if asked.planned else revision,
            },
        )

    all_experts = made.all_experts()
    by_budget = tuple(_budget(made, budget, asked.contents.longest_context, command(budget)) for budget in budgets)
    return Plan(
        model=report.model,
        planned=asked.planned,
        scheme=schemes_of(asked.contents),
        dense_scheme=report.dense_scheme,
        dense_parts=report.dense_parts,
        component=subject.component,
        working_set_nbytes=subject.working_set,
        expert_nbytes=subject.expert_nbytes,
        context=made.context,
        longest_context=asked.contents.longest_context,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        eviction=eviction,
        experts_per_token=experts_per_token,
        machine=machine,
        attainable=memory_limits().attainable,
        budgets=by_budget,
        domains=() if profile is None else domain_plans(made, by_budget),
        precisions=tuple(_precision(other, made, budgets[0]) for other in others),
        disk=_disk_need(asked, place, machine),
        all_experts=all_experts,
        knee=made.knee(all_experts),
        preparing=_preparing(asked, runs, scheme, dense_scheme, component, revision),
    )


def forecast_for(
    model: str | Path,
    *,
    context: int | None = None,
    component: str | None = None,
    experts_per_token: int | None = None,
    eviction: str = DEFAULT_POLICY,
    prompt_tokens: int = PLANNED_PROMPT_TOKENS,
    answer_tokens: int = PLANNED_ANSWER_TOKENS,
    machine: Machine | None = None,
    revision: str | None = None,
    offline: bool = False,
    max_rate: str | int | None = None,
    tell: Tell | None = None,
) -> Forecast:
    """What :func:`plan` goes by, of a model as it is: for whoever knows how many experts fit.

    The arguments are those of :func:`plan` and :func:`coterie.load`, and so are the errors.
    """
    asked = open_asked(model, component=component, revision=revision, offline=offline, max_rate=max_rate)
    subject = Subject.of(asked.contents, experts_per_token=experts_per_token)
    process = process_nbytes()
    return Forecast(
        subject=subject,
        hit_rates=without_text(subject, eviction),
        context=context or asked.contents.context,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        machine=machine or _measured(nearest_directory(asked.place), [subject], tell or silent),
        process=process,
    )


def _measured(place: Path, subjects: Sequence[Subject], tell: Tell) -> Machine:
    """This machine, in all precisions that the models have."""
    precisions = {name for one in subjects for name in one.precisions} - {NATIVE}
    return measure_machine(place, record=int(subjects[0].record), precisions=sorted(precisions), tell=tell)


def _preparing(
    asked: Asked,
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


def _precision(other: OtherPrecision, forecast: Forecast, memory: int) -> PrecisionPlan:
    there = replace(forecast, subject=other.subject)
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


def _disk_need(asked: Asked, place: Path, machine: Machine | None) -> DiskNeed:
    free = shutil.disk_usage(place).free
    checkpoint, report = asked.checkpoint, asked.contents.report
    used = () if checkpoint is None else checkpoint.tensors_in_use
    download = download_nbytes(asked)
    store = report.disk_nbytes if asked.planned else 0
    seconds = None
    if asked.planned and machine is not None:
        read = sum(info.nbytes for info in used)
        lossy = schemes_of(asked.contents) != NATIVE
        seconds = preparing_s(machine, read=read, written=store, quantised=lossy)
    return DiskNeed(
        path=str(place),
        free_nbytes=free,
        download_nbytes=download,
        store_nbytes=store,
        # Of what a store is made of nothing is kept.
        enough=(store if asked.planned else download) <= free,
        preparing_s=seconds,
    )

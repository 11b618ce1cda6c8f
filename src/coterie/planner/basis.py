"""What a forecast of hits rests on: dimensions and what is known of a model, a text of the user's, or a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from coterie.errors import UsageError
from coterie.planner.asked import Asked, download_nbytes
from coterie.planner.forecast import Forecast
from coterie.planner.hit_rates import HitRates, Law
from coterie.planner.known_models import known_hit_rates
from coterie.planner.probe import probe as probe_text
from coterie.planner.report import BudgetPlan, DomainPlan
from coterie.planner.subject import Subject
from coterie.spec import format_bytes
from coterie.spec.defaults import Missing
from coterie.spec.opening import Opening

MISSING: Missing = "mask"
"""What is done about experts that a partial store lacks, where nobody says."""


def check_basis(probe: str | None, profile: str | Path | None, domains: Sequence[str]) -> None:
    """Refuses domains without a profile, and two things at once to rest on."""
    if domains and profile is None:
        raise UsageError(
            f"What {' and '.join(domains)} would find in memory is known of a profile, and none was given.",
            advice="Add --profile PROFILE (coterie profile record makes one), or give a text of that kind as --probe.",
            got=list(domains),
        )
    if probe is not None and profile is not None:
        raise UsageError(
            "A hit rate is forecast from a probe or from a profile, not from both.",
            advice="Give --probe or --profile.",
        )


def without_text(subject: Subject, eviction: str) -> HitRates:
    """The forecast of a model that is known, or of any other."""
    return known_hit_rates(subject, eviction) or Law(experts=subject.experts, eviction=eviction)


def by_probe(asked: Asked, text: str, opening: Opening, subject: Subject, eviction: str) -> HitRates:
    """The forecast of a probe, with the weights that are here."""
    missing = download_nbytes(asked)
    if missing:
        raise UsageError(
            f"A probe runs the model, and {format_bytes(missing)} of {asked.name} are not on this machine.",
            advice="Plan without a probe, or download the model first.",
            model=asked.name,
        )
    if not asked.contents.report.complete:
        opening = replace(opening, missing=MISSING)
    return probe_text(
        asked.name,
        text,
        opening,
        component=subject.component,
        experts=round(subject.experts * subject.layers),
        law=Law(experts=subject.experts, eviction=eviction),
        top_k=subject.top_k,
    )


def by_profile(asked: Asked, profile: str | Path, domains: Sequence[str], subject: Subject, eviction: str) -> HitRates:
    """The forecast of a profile, of a model that has all the experts that are in it."""
    # Imported where it is needed: a plan without a profile shall not pay for a database.
    from coterie.planner.profiled import profiled

    report = asked.contents.report
    if not report.complete:
        raise UsageError(
            f"{asked.name} lacks experts, and a profile counts what the whole model uses.",
            advice="Plan without the profile, or give a text of yours as --probe.",
            model=asked.name,
        )
    return profiled(
        profile,
        report.model.identity,
        domains,
        component=subject.component,
        law=Law(experts=subject.experts, eviction=eviction),
    )


def domain_plans(forecast: Forecast, budgets: Sequence[BudgetPlan]) -> tuple[DomainPlan, ...]:
    """What each domain of a profile finds, if that is what the forecast is from."""
    from coterie.planner.profiled import MOST, Profiled

    known = forecast.hit_rates
    if not isinstance(known, Profiled):
        return ()
    top_k = forecast.subject.top_k
    return tuple(
        DomainPlan(
            domain=domain.name,
            tokens=domain.tokens,
            hit_rates=tuple(
                None if one.why_not is not None else known.of(domain, one.share, top_k=top_k) for one in budgets
            ),
            most=MOST,
            memory_for_most=forecast.memory_for(domain.share_for(MOST)),
        )
        for domain in known.domains
    )

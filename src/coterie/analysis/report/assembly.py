"""Makes a report: all answers, and the pictures beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coterie.analysis.examination import DRAWS, examine_routers
from coterie.analysis.geometry import RouterAnalysis
from coterie.analysis.matrices import Routers
from coterie.analysis.plots import activation_figure, load_figure, render, separation_figure
from coterie.analysis.plots.canvas import LINES, Shading, draw_map, new_figure, number_ticks, style
from coterie.analysis.plots.selection import bank_labels, component_tables
from coterie.analysis.report.favourites import favourites, most_specialised
from coterie.analysis.report.findings import Answer, Report
from coterie.analysis.report.material import PLURALS, Material, divergences, floors
from coterie.analysis.report.routing import routing
from coterie.analysis.report.salience import salience, salience_figure
from coterie.analysis.report.separation import cross_modal, partition
from coterie.analysis.report.spread import depth, dominance, load, universal
from coterie.analysis.report.trial import Trial, attention, head_shares
from coterie.analysis.report.words import Words
from coterie.errors import LoadError, ProfileIdentityError, UnsupportedError, UsageError
from coterie.profiles import Profile, ProfileDatabase
from coterie.profiles.heavy_tokens import TokenText, plain_id

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportPages:
    """A report and the pictures in it.

    Attributes:
        report: What it says.
        pictures: Name → SVG file.
    """

    report: Report
    pictures: Mapping[str, bytes]


def make_report(
    model: str | Path,
    profile: str | Path,
    *,
    component: str | None = None,
    trial: Trial | None = None,
    revision: str | None = None,
    offline: bool = False,
    draws: int = DRAWS,
    progress: Callable[[int, int], None] | None = None,
) -> ReportPages:
    """Answers questions about a model's experts from a profile, with figures, intervals and replication.

    The same profile gives the same report.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``: its routers are examined.
        profile: The profile of it: a file, or ``postgresql://USER@HOST/DATABASE``.
        component: The part of the model, where the profile has several.
        trial: A short run of the model (:func:`run_trial`), for what a profile does not keep.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.
        draws: Random arrangements of each router.
        progress: Told how many questions are answered, and how many there are.

    Raises:
        UsageError: For a component that is not there, or none where there are several.
        ProfileError: If the profile cannot be read; ProfileIdentityError if it is about another model.
        CheckpointError, StoreError: If the model cannot be used.
        MissingPackageError: If Matplotlib, SciPy or scikit-learn is not installed.
    """
    with ProfileDatabase(profile) as database:
        found = Profile.read(database)
        name = component_tables(found, component)[0].shape.bank.component
        material = Material.of(found, name)
        # Begun with the routers: a profile of another model is refused before anything is computed.
        analysis = _routers(model, material.profile, name, revision, offline, draws)
        specialists = most_specialised(material)
        words = Words(found, database, {one.bank for one in specialists})
        questions: tuple[Callable[[], Answer], ...] = (
            lambda: partition(material, "modality"),
            lambda: partition(material, "domain"),
            lambda: routing(material, words, analysis),
            lambda: cross_modal(material),
            lambda: dominance(material, trial),
            lambda: attention(trial),
            lambda: salience(None if trial is None else trial.salience),
            lambda: depth(material),
            lambda: universal(material),
            lambda: favourites(material, specialists, words, _texts(model, revision, offline)),
            lambda: load(material),
        )
        answers = []
        for number, question in enumerate(questions):
            answers.append(question())
            if progress is not None:
                progress(number + 1, len(questions))
    report = Report(
        model=found.model,
        model_class=found.model_class,
        identity=found.identity,
        component=name,
        banks=len(material.profile.banks),
        experts=material.experts,
        tokens=material.tokens,
        modalities=material.profile.modalities,
        domains=material.profile.domains,
        recorded=tuple(sorted(run.started for run in found.runs)),
        trial_tokens=0 if trial is None else trial.tokens,
        answers=tuple(answers),
    )
    wanted = dict.fromkeys(picture.name for answer in answers for picture in answer.pictures)
    return ReportPages(report=report, pictures={one: render(_figure(one, material, trial), "svg") for one in wanted})


def _routers(
    model: str | Path, profile: Profile, component: str, revision: str | None, offline: bool, draws: int
) -> RouterAnalysis | str:
    try:
        return examine_routers(
            model, profile=profile, component=component, revision=revision, offline=offline, draws=draws
        )
    except UnsupportedError as error:
        return error.message.rstrip(".")
    except UsageError as error:
        if error.facts.get("got") != component:
            raise
        identity = Routers.open(model, revision=revision, offline=offline).identity
        raise ProfileIdentityError(
            f"The profile is about {profile.model} ({profile.identity}), whose experts are in {component!r}; {model} "
            f"({identity}) has none there.",
            advice="Record a profile of this model.",
            expected=identity,
            got=profile.identity,
        ) from error


def _texts(model: str | Path, revision: str | None, offline: bool) -> TokenText:
    # Here: pictures and answers from a profile alone need no torch.
    from coterie.generation.token_texts import token_texts

    try:
        return token_texts(model, revision=revision, offline=offline)
    except LoadError:
        return plain_id  # not every model reads text


def _figure(name: str, material: Material, trial: Trial | None) -> Figure:
    if name == "heads" and trial is not None:
        return _heads_figure(trial)
    if name == "salience" and trial is not None and trial.salience is not None:
        return salience_figure(trial.salience)
    drawn: dict[str, Callable[[Profile], Figure]] = {
        "modalities": separation_figure,
        "activation": activation_figure,
        "load": load_figure,
    }
    return drawn[name](material.profile) if name in drawn else _depth_figure(material)


@style()
def _depth_figure(material: Material) -> Figure:
    figure = new_figure(f"Divergence over depth: {material.profile.model}", height=3.0)
    axes = figure.subplots()
    for by, (color, line, marker) in zip(PLURALS, LINES, strict=False):
        if len(material.known(by)) < 2:
            continue
        profile, masks = material.stretches.profile, material.masks(by)
        axes.plot(
            *_known(divergences(profile, masks)),
            color=color,
            linestyle=line,
            marker=marker,
            label=f"{PLURALS[by]}, mean of all pairs",
        )
        noise = _known(floors(profile, masks))
        if noise[0]:
            axes.plot(
                *noise,
                color=color,
                linestyle="none",
                marker=marker,
                markerfacecolor="none",
                alpha=0.7,
                label=f"{PLURALS[by]}: noise floor",
            )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel("Jensen–Shannon divergence (bits)")
    number_ticks(axes, "x", bank_labels([table.shape.bank for table in material.profile.tables()]))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _known(values: list[float | None]) -> tuple[list[int], list[float]]:
    """Places of layers, and what is known of them."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    return [place for place, _ in known], [value for _, value in known]


@style()
def _heads_figure(trial: Trial) -> Figure:
    shares = 100 * head_shares(trial)
    figure = new_figure(f"Attention heads, {trial.tokens:,} tokens", height=3.0)
    axes = figure.subplots()
    image = draw_map(axes, shares, Shading.from_zero(shares))
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    number_ticks(axes, "x", [str(head) for head in np.arange(shares.shape[1])])
    number_ticks(axes, "y", [str(layer) for layer in np.arange(len(shares))])
    figure.colorbar(image, ax=axes, label="share of the layer's head norms (%)")
    return figure

"""What is varied along a curve, and the points that this makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from coterie.errors import UsageError
from coterie.spec import Missing
from coterie.spec.amount import Amount
from coterie.spec.encodings import NATIVE
from coterie.spec.scheme_names import check_scheme

ChosenBy = Literal["id", "frequency", "reap", "ean", "random"]
"""What decides which experts are there: the lowest numbers; what a profile has recorded
(:data:`coterie.profiles.ImportanceMeasure`); or a draw."""

CHOSEN_BY: tuple[ChosenBy, ...] = get_args(ChosenBy)
BY_PROFILE: tuple[ChosenBy, ...] = ("frequency", "reap", "ean")

Scope = Literal["layer", "model"]
"""What a share of the experts is of: of each layer's, or of all the model's, ranked together."""

Absent = Literal["mask", "drop", "nearest"]
ABSENT: tuple[Absent, ...] = get_args(Absent)
"""What can be done about an expert that is not there without getting it."""

Axis = Literal["coverage", "experts_per_token", "bits", "drop_cold"]
AXES: tuple[Axis, ...] = get_args(Axis)

DEFAULT_COVERAGE = ("28%", "60%", "100%")

_ALL = Amount(share=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """In what a point's model differs from the full one; None: in nothing.

    Attributes:
        axis: The axis that the point is on.
        keep: Experts that are there: a number or a share, such as ``28%``, of each layer's or of all, as ``scope``
            says.
        by: What they are chosen by.
        scope: What ``keep`` is of.
        missing: What is done about absent ones.
        experts_per_token: Experts per token instead of the model's own number.
        scheme: The scheme of all experts.
        expert_schemes: A file with the scheme of each expert.
        store: Another store of the model.
        drop_cold: Share of a token's highest gate weight below which experts that are not in memory are left out. 0:
            none is, and what is read is counted.
        domain: The domain of the profile whose tokens decide which experts are there; None: all.
        text: The only text that is predicted; None: all.
    """

    axis: Axis
    keep: str | None = None
    by: ChosenBy | None = None
    scope: Scope = "layer"
    missing: Missing | None = None
    experts_per_token: int | None = None
    scheme: str | None = None
    expert_schemes: str | None = None
    store: str | None = None
    drop_cold: float | None = None
    domain: str | None = None
    text: str | None = None

    @property
    def in_steps(self) -> bool:
        """Whether tokens are computed one by one, as in generation."""
        return self.drop_cold is not None

    @property
    def chosen_by(self) -> str:
        """What experts are chosen by, and for which domain, in a word or three."""
        if self.by is None:
            return "all"
        return self.by if self.domain is None else f"{self.by} of {self.domain}"

    @property
    def label(self) -> str:
        """What tells it from the other points of its axis."""
        if self.axis == "coverage":
            what = "experts" if self.text is None else f"experts for {self.text}"
            chosen = [] if self.by is None else [f"by {self.chosen_by}", str(self.missing)]
            return ", ".join([f"{self.keep} {what}", *chosen])
        if self.axis == "experts_per_token":
            return f"{self.experts_per_token} experts per token"
        if self.axis == "bits":
            return self.scheme or self.expert_schemes or self.store or NATIVE
        return f"drop-cold {self.drop_cold:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveAxes:
    """What is varied, each by itself.

    Attributes:
        coverage: How many experts are there: numbers, or shares such as ``"28%"``. With all, nothing else matters.
        by: What they are chosen by, each with each coverage. None: ``id``, and with a profile also ``frequency`` and
            ``reap``; ``ean`` in searching.
        domains: Domains of the profile: with each coverage, experts are also chosen by what each of these needs.
        missing: What is done about absent experts, each with each coverage. The first is that of searching.
        scope: Whether coverage is of each layer, or of the whole model. Searching is always of the whole model.
        experts_per_token: Numbers of experts per token.
        schemes: Schemes of all experts.
        expert_schemes: Files that say how each expert is stored, as :func:`coterie.quantize` reads them.
        stores: Further stores of the model: with calibrated codes, for example.
        drop_cold: Shares as of :func:`coterie.load`. Without any of them left out is measured, too.
        smallest: Divergences, in nats per token: the fewest experts that keep each domain's below them are searched.
    """

    coverage: Sequence[str] = ()
    by: Sequence[ChosenBy] | None = None
    domains: Sequence[str] = ()
    missing: Sequence[Absent] = ABSENT
    scope: Scope = "layer"
    experts_per_token: Sequence[int] = ()
    schemes: Sequence[str] = ()
    expert_schemes: Sequence[str | Path] = ()
    stores: Sequence[str | Path] = ()
    drop_cold: Sequence[float] = ()
    smallest: Sequence[float] = ()

    def checked(self, *, profile: bool) -> CurveAxes:
        """The axes, with coverage if nothing else is varied.

        Args:
            profile: Whether there is a profile.

        Raises:
            UsageError: If a value cannot be, needs a profile that there is not, or has no effect.
        """
        for what, names, known in (
            ("way to choose experts", self.by or (), CHOSEN_BY),
            ("missing policy", self.missing, ABSENT),
            ("scope", (self.scope,), get_args(Scope)),
        ):
            for name in names:
                if name not in known:
                    raise UsageError.unknown(what, name, known)
        for scheme in self.schemes:
            check_scheme(scheme)
        if not self.missing or (self.by is not None and not self.by):
            raise UsageError("Nothing is said of which experts are there, or what is done about absent ones.")
        for given in self.coverage:
            Amount.parse(given)
        for number in self.experts_per_token:
            if number < 1:
                raise UsageError(f"experts_per_token must be at least 1, not {number}.", got=number)
        for share in self.drop_cold:
            if not 0 < share <= 1:
                raise UsageError(
                    f"drop_cold is a share of a token's highest gate weight, above 0 and up to 1, not {share}.",
                    got=share,
                )
        for bound in self.smallest:
            if not bound > 0:
                raise UsageError(
                    f"The divergence to keep below is above 0, not {bound}.",
                    advice="It is in nats per token: 0.01 is little, 0.05 is noticed.",
                    got=bound,
                )
        needing = [name for name in self.by or () if name in BY_PROFILE]
        if not profile and (needing or self.smallest or self.domains):
            what = f"Choosing experts by {needing[0]}" if needing else "Choosing experts for a domain"
            raise UsageError(
                f"{what} goes by what a profile has recorded.",
                advice="Add --profile PROFILE; `coterie profile record` makes one.",
            )
        if self.smallest and not self.search_by:
            raise UsageError(
                "A smallest set of experts is searched by what a profile has recorded.",
                advice=f"Choose by one of {', '.join(BY_PROFILE)}.",
            )
        axes = self if any(self._varied) else replace(self, coverage=DEFAULT_COVERAGE)
        axes._check_effect(profile=profile)
        return axes

    def _check_effect(self, *, profile: bool) -> None:
        """Refuses what would have no effect."""
        by, search = set(self._by(profile=profile)), bool(self.smallest)
        fewer = any(Amount.parse(given) != _ALL for given in self.coverage)
        parts: tuple[tuple[str, bool, bool], ...] = (
            ("A way to choose experts", self.by is not None, fewer or (search and by <= set(BY_PROFILE))),
            ("A choice by domain", bool(self.domains), fewer and bool(by & set(BY_PROFILE))),
            (
                "A policy for absent experts",
                tuple(self.missing) != ABSENT,
                fewer or (search and len(self.missing) == 1),
            ),
            ("A scope", self.scope != "layer", fewer),
            ("A profile", profile, fewer or search),
        )
        useless = [name for name, given, used in parts if given and not used]
        if not useless:
            return
        if fewer:
            why, advice = "no experts are chosen by what a profile has recorded", f"choose by {', '.join(BY_PROFILE)}"
        elif search:
            why = "a search ranks all the model's experts by what a profile has recorded of each text, with one policy"
            advice = "vary the coverage, too"
        else:
            why, advice = "at every point all experts are there", "vary the coverage, too"
        raise UsageError(f"{useless[0]} is given and has no effect: {why}.", advice=f"Leave it out, or {advice}.")

    def _by(self, *, profile: bool) -> tuple[ChosenBy, ...]:
        """What experts are chosen by on the axis of coverage."""
        return tuple(self.by or (("id", "frequency", "reap") if profile else ("id",)))

    @property
    def _varied(self) -> tuple[Sequence[object], ...]:
        return (
            self.coverage,
            self.experts_per_token,
            self.schemes,
            self.expert_schemes,
            self.stores,
            self.drop_cold,
            self.smallest,
        )

    @property
    def search_by(self) -> tuple[ChosenBy, ...]:
        """What experts are ranked by in searching."""
        return ("ean",) if self.by is None else tuple(name for name in self.by if name in BY_PROFILE)

    def settings(self, *, profile: bool) -> list[Setting]:
        """The points, axis by axis; those of searching come by themselves.

        Args:
            profile: Whether there is a profile.
        """
        found = [
            setting
            for given in dict.fromkeys(self.coverage)
            for setting in self._coverage(given, self._by(profile=profile))
        ]
        found += [Setting(axis="experts_per_token", experts_per_token=k) for k in dict.fromkeys(self.experts_per_token)]
        found += [Setting(axis="bits", scheme=name) for name in dict.fromkeys(self.schemes)]
        found += [Setting(axis="bits", expert_schemes=str(path)) for path in dict.fromkeys(self.expert_schemes)]
        found += [Setting(axis="bits", store=str(path)) for path in dict.fromkeys(self.stores)]
        if self.drop_cold:
            found += [Setting(axis="drop_cold", drop_cold=share) for share in (0.0, *dict.fromkeys(self.drop_cold))]
        return found

    def _coverage(self, given: str, by: tuple[ChosenBy, ...]) -> list[Setting]:
        if Amount.parse(given) == _ALL:
            return [Setting(axis="coverage", keep=given)]
        return [
            Setting(axis="coverage", keep=given, by=one, domain=domain, scope=self.scope, missing=missing)
            for one in dict.fromkeys(by)
            for domain in (None, *(dict.fromkeys(self.domains) if one in BY_PROFILE else ()))
            for missing in dict.fromkeys(self.missing)
        ]

"""What a store's divergence should be beside that of a uniform one: from what the experts of both are off by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from coterie.extraction.allocation.choosing import ABSENCE
from coterie.origins import Origin, StoreOrigin
from coterie.profiles import Usage, error_weights
from coterie.profiles.usage import Floats
from coterie.spec import BankKey, ExpertKey
from coterie.spec.encodings import SCHEME_FORMATS, schemes_named
from coterie.store.manifest import PARTS_OF_ONE
from coterie.survey.material import MODALITY_OF, MaterialKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A store that was made, and what is known of the model that it was made of.

    Attributes:
        store: The store.
        origin: The model.
        profile: What its experts do.
    """

    store: Path
    origin: Origin
    profile: str | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What is scored together.

    Attributes:
        name: What results call it.
        domain: Its domain in the profile.
        kind: Texts, sounds or pictures.
    """

    name: str
    domain: str
    kind: MaterialKind


def expected_ratios(made: Made, uniform: Made, scored: Iterable[Scored]) -> dict[str, float]:
    """How much farther than a uniform store a store should be from the full model, on each domain.

    Every expert is off by a share of what it computes, which calibration has measured. The sum of these, each times the
    expert's share of its layer's energy on tokens of the domain, is what these notice. Of sounds and pictures those are
    the tokens that they are made into. A small divergence grows with the square of what outputs are off by, and these
    are squares: the ratio of the sums is that of the divergences. A store of a pruned model is off by that from the
    pruned model.

    Args:
        made: The store.
        uniform: The uniform one.
        scored: What is scored.

    Returns:
        Name → the ratio. What the profile does not know is left out.
    """
    ours, theirs = _Noticed(made), _Noticed(uniform)
    found: dict[str, float] = {}
    for one in scored:
        own, other = ours.by(one), theirs.by(one)
        if own is not None and other:
            found[one.name] = own / other
    return found


class _Noticed:
    """What tokens notice of what a store's experts are off by."""

    def __init__(self, made: Made) -> None:
        self._origin = made.origin
        self._usage = Usage.open(made.profile, made.origin.identity)
        self._errors = errors_of(made.store)

    def by(self, scored: Scored) -> float | None:
        """What those of a domain notice; None if nothing was recorded of it."""
        weights = _energies(self._usage, self._origin, scored)
        return _sum(weights, self._errors) if weights else None


def errors_of(store: Path) -> dict[ExpertKey, float]:
    """What each expert that is in a store is off by: the squared error of its output, as a share of the square of it.

    It is the sum of what its matrices are off by. An expert of whose inputs calibration knew nothing is taken to be off
    by as much as the others in its scheme.
    """
    origin = StoreOrigin.open(store)
    found: dict[ExpertKey, float] = {}
    known: defaultdict[str, list[float]] = defaultdict(list)
    unknown: list[ExpertKey] = []
    for key in origin.keys():
        errors, scheme = origin.errors(key), origin.scheme(key)
        if errors is not None:
            found[key] = len(errors.weights) * errors.output / PARTS_OF_ONE
            known[scheme].append(found[key])
        elif any(name in SCHEME_FORMATS for name in schemes_named(scheme)):
            unknown.append(key)
        else:
            found[key] = 0.0
    every = [error for errors in known.values() for error in errors]
    for key in unknown:
        like = known[origin.scheme(key)] or every
        found[key] = sum(like) / len(like) if like else 0.0
    return found


def _energies(usage: Usage, origin: Origin, scored: Scored) -> Mapping[BankKey, Floats]:
    """[E] of each bank: the experts' shares of its energy on tokens of a domain; no bank that is not for these."""
    modality, domain = MODALITY_OF[scored.kind], scored.domain
    rows = [row for row, group in enumerate(usage.groups) if (group.modality, group.domain) == (modality, domain)]
    tables = {bank: usage.banks[bank] for bank in origin.model.banks if bank in usage.banks}
    banks = [bank for bank, table in tables.items() if table.reap_counts[rows].any()]
    if not banks:
        return {}
    return error_weights(usage, banks, {}, domains=(domain,), modalities=(modality,)).weights


def _sum(weights: Mapping[BankKey, Floats], errors: Mapping[ExpertKey, float]) -> float:
    return sum(
        float(weight) * errors.get(bank.expert(expert), ABSENCE)
        for bank, of in weights.items()
        for expert, weight in enumerate(of)
    )

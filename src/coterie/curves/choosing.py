"""Which experts are there, of so many: the first of a ranking."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

from coterie.curves.settings import BY_PROFILE, ChosenBy, Scope
from coterie.errors import UsageError
from coterie.extraction.keeping import Amount
from coterie.hf.banks import ExpertBank
from coterie.spec import BankKey, ExpertKey

if TYPE_CHECKING:
    from coterie.profiles import Usage

Chosen = Mapping[BankKey, tuple[int, ...]]
"""Bank → ids of the experts that are there, ascending."""

TEXT = ("text",)
"""The modalities whose tokens decide: the texts that a model is measured with have no others."""


class ExpertRanking:
    """The experts of a model, the ones to keep longest first.

    Args:
        banks: The model's banks.
        by: What they are ranked by.
        usage: What a profile has recorded; needed for some.
        domain: Whose tokens decide; None for all.

    Raises:
        UsageError: If the profile does not know the domain, or a bank, or has no tokens of a text.
    """

    def __init__(
        self, banks: Mapping[BankKey, ExpertBank], by: ChosenBy, usage: Usage | None, domain: str | None = None
    ) -> None:
        self._banks = banks
        self._least = {key: max(1, (bank.choices or 1) - bank.identities) for key, bank in banks.items()}
        scores = _scores(banks, by, usage, domain)
        self._order = {
            key: [expert for _, expert in sorted((-value, expert) for expert, value in enumerate(values))]
            for key, values in scores.items()
        }
        places = [
            (rank >= self._least[key], -scores[key][expert], key.expert(expert))
            for key, order in self._order.items()
            for rank, expert in enumerate(order)
        ]
        self._all: tuple[ExpertKey, ...] = tuple(key for *_, key in sorted(places))

    @property
    def total(self) -> int:
        """How many experts there are."""
        return len(self._all)

    @property
    def least(self) -> int:
        """With fewer, some layer would have less than a token uses."""
        return sum(min(self._least[key], bank.num_experts) for key, bank in self._banks.items())

    def take(self, amount: Amount, scope: Scope) -> Chosen:
        """The experts that are there.

        Args:
            amount: How many.
            scope: Of each layer's, the same for all; or of the model's, of which each layer has at least as many as a
                token uses.

        Raises:
            UsageError: If there are fewer, or a layer would have less than a token uses.
        """
        if scope == "model":
            wanted = amount.of(self.total)
            _check(wanted, self.total, self.least, "the model")
            return self.first(wanted)
        found = {}
        for key, bank in self._banks.items():
            wanted = amount.of(bank.num_experts)
            _check(wanted, bank.num_experts, min(self._least[key], bank.num_experts), str(key))
            found[key] = tuple(sorted(self._order[key][:wanted]))
        return found

    def first(self, count: int) -> Chosen:
        """So many of the whole model."""
        found: dict[BankKey, list[int]] = {key: [] for key in self._banks}
        for key in self._all[:count]:
            found[key.bank_key].append(key.expert)
        return {key: tuple(sorted(ids)) for key, ids in found.items()}


def kept_gate_mass(usage: Usage, chosen: Chosen, domain: str | None) -> float:
    """The share of the gate weights of a profile's text that went to these experts, mean over layers.

    Args:
        usage: The profile.
        chosen: The experts.
        domain: Whose tokens; None for all.
    """
    rows = usage.where(domain, TEXT)
    shares = []
    for key, ids in chosen.items():
        mass = usage.banks[key].gate_mass[rows].sum(axis=0)
        shares.append(float(mass[list(ids)].sum() / mass.sum()) if mass.sum() > 0 else 0.0)
    return sum(shares) / len(shares)


def _scores(
    banks: Mapping[BankKey, ExpertBank], by: ChosenBy, usage: Usage | None, domain: str | None
) -> dict[BankKey, list[float]]:
    """Bank → [E], the higher the longer an expert is kept."""
    if by in BY_PROFILE:
        # Imported where it is needed: a curve without a profile shall not pay for a database.
        from coterie.profiles import importance

        assert usage is not None, "settings are checked before"
        domains = [] if domain is None else [domain]
        found = importance(usage, banks.keys(), by, {}, domains=domains, modalities=TEXT)  # type: ignore[arg-type]
        return {key: values.tolist() for key, values in found.scores.items()}
    draw = random.Random(0)
    return {
        key: [draw.random() if by == "random" else -expert / bank.num_experts for expert in range(bank.num_experts)]
        for key, bank in sorted(banks.items())
    }


def _check(wanted: int, there: int, least: int, where: str) -> None:
    if wanted > there:
        raise UsageError(f"{wanted} experts of {where} are asked for, which has {there}.", limit=there)
    if wanted < least:
        raise UsageError(
            f"{wanted} of the {there} experts of {where} are fewer than its tokens use, {least}.",
            advice=f"Ask for at least {least}, or {-(-100 * least // there)}%.",
            least=least,
        )

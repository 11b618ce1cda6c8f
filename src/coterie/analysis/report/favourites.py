"""What the most specialised experts read: their favourite tokens, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coterie.analysis.report.findings import Answer, Table, shown
from coterie.analysis.report.material import PLURALS, Material
from coterie.analysis.report.words import Words
from coterie.profiles.heavy_tokens import HeavyToken, TokenTable, TokenText, heavy_tokens, quoted
from coterie.profiles.specialisation import Specialisation
from coterie.spec import BankKey

_EXPERTS = 20
_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Specialist:
    """An expert, and what it is a specialist of.

    Attributes:
        of: The modality, or domain.
        found: Its bank's experts on tokens of that.
        expert: Its number.
    """

    of: str
    found: Specialisation
    expert: int

    @property
    def share(self) -> float:
        """Share of those tokens that select it."""
        return float(self.found.shares[self.expert])

    @property
    def lift(self) -> float:
        """How many times chance that is."""
        return float(self.found.shares[self.expert] / self.found.chance)

    @property
    def bank(self) -> BankKey:
        """Its bank."""
        return self.found.shape.bank

    @property
    def place(self) -> tuple[BankKey, int]:
        """Which expert it is."""
        return self.bank, self.expert


def favourites(material: Material, listed: Sequence[Specialist], words: Words, text_of: TokenText) -> Answer:
    """The specialists that stand out most, and the tokens that each is chosen for.

    Args:
        material: The component's counters.
        listed: From :func:`most_specialised`.
        words: Counts of tokens.
        text_of: Token id → text.
    """
    question = "What do the most specialised experts read?"
    if not listed:
        return Answer(key="favourites", question=question, answer="Nothing is shown: no expert is a specialist.")
    counts = {bank: words.of(bank) for bank in dict.fromkeys(one.bank for one in listed)}
    rows = [_row(one, _tokens(material, counts[one.bank], one), text_of) for one in listed]
    first = listed[0]
    bank = first.found.shape.bank
    if any(table is not None for table in counts.values()):
        notes = ("Tokens are input tokens, each with the share of its occurrences that select the expert.",)
    else:
        notes = ("The profile keeps no token ids: it was recorded with --vocabulary 0.",)
    return Answer(
        key="favourites",
        question=question,
        answer=(
            f"Expert {first.expert} of layer {bank.layer} stands out most: {shown(first.share, '%')} of the "
            f"tokens of {first.of} select it, {first.lift:.1f} times chance."
        ),
        tables=(
            Table(
                title=f"The {len(rows)} most specialised experts, and their favourite tokens",
                columns=("layer:expert", "specialist of", "share", "times chance", "favourite tokens"),
                rows=tuple(rows),
            ),
        ),
        notes=notes,
    )


def most_specialised(material: Material) -> list[Specialist]:
    """Each expert once, as a specialist of what it stands out most in."""
    found: dict[tuple[BankKey, int], Specialist] = {}
    for by in PLURALS:
        for name, banks in material.specialisations(by).items():
            for bank in banks:
                for expert in np.flatnonzero(bank.specialists).tolist():
                    one = Specialist(name, bank, expert)
                    if one.place not in found or one.lift > found[one.place].lift:
                        found[one.place] = one
    return sorted(found.values(), key=lambda one: (-one.lift, one.place))[:_EXPERTS]


def _tokens(material: Material, counts: TokenTable | None, one: Specialist) -> tuple[HeavyToken, ...]:
    if counts is None:
        return ()
    table = material.profile.banks[one.found.shape.bank]
    base = float(table.activations[:, one.expert].sum() / max(1, int(table.tokens.sum())))
    return heavy_tokens(counts, one.expert, base, limit=_TOKENS)


def _row(one: Specialist, tokens: tuple[HeavyToken, ...], text_of: TokenText) -> tuple[str, ...]:
    words = ", ".join(f"{quoted(text_of(token.token_id))} {token.specialisation:.0%}" for token in tokens)
    place = f"{one.found.shape.bank.layer}:{one.expert}"
    return (place, one.of, shown(one.share, "%"), f"{one.lift:.1f}", words or "–")

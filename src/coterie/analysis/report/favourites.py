"""What the most specialised experts read: their favourite tokens, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coterie.analysis.report.findings import Answer, Table, shown
from coterie.analysis.report.material import PLURALS, Material
from coterie.profiles import Profile, ProfileDatabase
from coterie.profiles.heavy_tokens import HeavyToken, TokenTable, TokenText, heavy_tokens, quoted, token_table
from coterie.profiles.specialisation import Specialisation
from coterie.spec import BankKey

_EXPERTS = 20
_TOKENS = 8


@dataclass(frozen=True, slots=True)
class _Specialist:
    """An expert, and what it is a specialist of."""

    of: str
    found: Specialisation
    expert: int

    @property
    def share(self) -> float:
        return float(self.found.shares[self.expert])

    @property
    def lift(self) -> float:
        return float(self.found.shares[self.expert] / self.found.chance)

    @property
    def place(self) -> tuple[BankKey, int]:
        return self.found.shape.bank, self.expert


def favourites(material: Material, database: ProfileDatabase, whole: Profile, text_of: TokenText) -> Answer:
    """The specialists that stand out most, and the tokens that each is chosen for.

    Args:
        material: The component's counters.
        database: Where they were read from: counts of tokens are read now.
        whole: The profile.
        text_of: Token id → text.
    """
    question = "What do the most specialised experts read?"
    listed = _most_specialised(material)
    if not listed:
        return Answer(key="favourites", question=question, answer="Nothing is shown: no expert is a specialist.")
    counts: dict[BankKey, TokenTable | None] = {}
    rows = []
    for one in listed:
        bank = one.found.shape.bank
        if bank not in counts:
            counts[bank] = token_table(whole, database, bank)
        rows.append(_row(one, _tokens(material, counts[bank], one), text_of))
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


def _most_specialised(material: Material) -> list[_Specialist]:
    """Each expert once, as a specialist of what it stands out most in."""
    found: dict[tuple[BankKey, int], _Specialist] = {}
    for by in PLURALS:
        for name, banks in material.specialisations(by).items():
            for bank in banks:
                for expert in np.flatnonzero(bank.specialists).tolist():
                    one = _Specialist(name, bank, expert)
                    if one.place not in found or one.lift > found[one.place].lift:
                        found[one.place] = one
    return sorted(found.values(), key=lambda one: (-one.lift, one.place))[:_EXPERTS]


def _tokens(material: Material, counts: TokenTable | None, one: _Specialist) -> tuple[HeavyToken, ...]:
    if counts is None:
        return ()
    table = material.profile.banks[one.found.shape.bank]
    base = float(table.activations[:, one.expert].sum() / max(1, int(table.tokens.sum())))
    return heavy_tokens(counts, one.expert, base, limit=_TOKENS)


def _row(one: _Specialist, tokens: tuple[HeavyToken, ...], text_of: TokenText) -> tuple[str, ...]:
    words = ", ".join(f"{quoted(text_of(token.token_id))} {token.specialisation:.0%}" for token in tokens)
    place = f"{one.found.shape.bank.layer}:{one.expert}"
    return (place, one.of, shown(one.share, "%"), f"{one.lift:.1f}", words or "–")

"""Which tokens an expert is chosen for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coterie.profiles.database import ProfileDatabase
from coterie.profiles.facts import Counts, TokenCounts
from coterie.profiles.inference import LEVEL, special_functions
from coterie.profiles.profile import Profile
from coterie.profiles.reading import read_runs, read_vocabulary
from coterie.profiles.sketch import add_counts
from coterie.spec import BankKey

TokenText = Callable[[int], str]
"""What a tokenizer says that a token id is."""
LEAST_OCCURRENCES = 8
"""Times that a token must have passed before anything is said of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeavyToken:
    """An input token that an expert is chosen for.

    Attributes:
        token_id: Its id, in the tokenizer that the runs name.
        occurrences: N_v, times that it passed the layer.
        activations: N_{e,v}, of these that selected the expert, at least: counts of tokens are lower bounds.
        specialisation: N_{e,v} / N_v.
        low: Lower end of its 95 % interval (Clopper & Pearson 1934), were occurrences independent.
    """

    token_id: int
    occurrences: int
    activations: int
    specialisation: float
    low: float


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Counts of tokens of one bank over all runs.

    Attributes:
        experts: int64 [n].
        tokens: int64 [n] token ids.
        counts: int64 [n] how often each token selected each expert, at least.
        totals: Token id → how often it passed.
        dropped: int64 [E] what each count may fall short by.
    """

    experts: Counts
    tokens: Counts
    counts: Counts
    totals: dict[int, int]
    dropped: Counts


def token_table(profile: Profile, database: ProfileDatabase, bank: BankKey) -> TokenTable | None:
    """Counts of tokens of one bank, summed over all runs that have them; None if none has."""
    states: list[TokenCounts] = []
    totals: list[TokenCounts] = []
    with database.reading() as connection:
        for run in read_runs(connection, profile.identity):
            if bank not in run.bank_ids:
                continue
            found = read_vocabulary(connection, run, bank)
            kind = (bank.component, bank.bank)
            if bank in found.banks and kind in found.totals:
                states.append(found.banks[bank])
                totals.append(found.totals[kind])
    if not states:
        return None
    codes, counts = _sum(states)
    token_ids, occurrences = _sum(totals)
    return TokenTable(
        experts=codes >> 32,
        tokens=codes & 0xFFFFFFFF,
        counts=counts,
        totals=dict(zip(token_ids.tolist(), occurrences.tolist(), strict=True)),
        dropped=np.sum([state.dropped for state in states], axis=0),
    )


def _sum(states: list[TokenCounts]) -> tuple[Counts, Counts]:
    codes, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for state in states:
        more = (state.experts.astype(np.int64) << 32) | state.tokens.astype(np.int64)
        codes, counts = add_counts(codes, counts, more, state.counts)
    return codes, counts


def heavy_tokens(table: TokenTable, expert: int, base: float, *, limit: int = 10) -> tuple[HeavyToken, ...]:
    """The tokens by vocabulary specialisation N_{e,v} / N_v (Muennighoff and others, "OLMoE", 2024, section 5).

    Ordered by the lower end of the interval, so that a token that passed ten times does not stand above one that
    passed a thousand times for nothing. Tokens are *input* tokens: the one whose hidden state the router saw.

    Args:
        table: Of the expert's bank.
        expert: Its number.
        base: Share of all tokens that select the expert.
        limit: Tokens at most.
    """
    mine = table.experts == expert
    tokens, counts = table.tokens[mine], table.counts[mine]
    occurrences = np.array([table.totals.get(token, 0) for token in tokens.tolist()], np.int64)
    enough = occurrences >= LEAST_OCCURRENCES
    tokens, counts, occurrences = tokens[enough], np.minimum(counts[enough], occurrences[enough]), occurrences[enough]
    low = special_functions().betaincinv(counts, occurrences - counts + 1, (1 - LEVEL) / 2)
    order = [place for place in np.lexsort((tokens, -low)).tolist() if low[place] > base][:limit]
    return tuple(
        HeavyToken(
            token_id=int(tokens[place]),
            occurrences=int(occurrences[place]),
            activations=int(counts[place]),
            specialisation=float(counts[place] / occurrences[place]),
            low=float(low[place]),
        )
        for place in order
    )


def plain_id(token: int) -> str:
    """What stands for a token whose text is not known."""
    return f"id {token}"


def quoted(text: str) -> str:
    """A token's text with its blanks to be seen, and nothing in it that is not."""
    return f"“{''.join(_visible(character) for character in text)}”"


def _visible(character: str) -> str:
    if character == "\n":
        return "⏎"
    return character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"

"""Counts of tokens, which a profile keeps by bank, each read once for all the answers that are about them."""

from __future__ import annotations

from collections.abc import Collection

from coterie.profiles import Profile, ProfileDatabase
from coterie.profiles.heavy_tokens import TokenTable, token_table
from coterie.spec import BankKey


class Words:
    """The counts of tokens of a profile's banks.

    Args:
        profile: The profile.
        database: Where it was read from: counts of tokens are read when they are asked for.
        again: Banks that are asked about more than once; of others nothing is kept, as all together may be large.
    """

    def __init__(self, profile: Profile, database: ProfileDatabase, again: Collection[BankKey]) -> None:
        self._profile = profile
        self._database = database
        self._again = again
        self._kept: dict[BankKey, TokenTable | None] = {}

    def of(self, bank: BankKey) -> TokenTable | None:
        """Those of one bank, summed over all runs that have them; None if none has."""
        if bank in self._kept:
            return self._kept[bank]
        table = token_table(self._profile, self._database, bank)
        if bank in self._again:
            self._kept[bank] = table
        return table

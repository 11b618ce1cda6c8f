"""What requests say that they are about, for the profile that a server records."""

from __future__ import annotations

from coterie.errors import UsageError
from coterie.profiles.facts import check_group
from coterie.server.refusals import Refusal

MOST_DOMAINS = 32
"""Names that requests may use in all: a profile keeps counts for each, and has room for 256 groups of tokens."""


class Domains:
    """The names that have been used.

    Args:
        usual: That of requests that name none.
    """

    def __init__(self, usual: str) -> None:
        self._used = {usual}

    def taken(self, name: str) -> str:
        """A name as a profile keeps it.

        Raises:
            Refusal: If it is none, or a new one beside as many as there may be.
        """
        try:
            check_group("text", name, "prompt")
        except UsageError as error:
            raise Refusal(400, str(error), param="coterie.domain") from error
        if name not in self._used:
            if len(self._used) >= MOST_DOMAINS:
                raise Refusal(
                    400, f"Requests have named {MOST_DOMAINS} domains, and there is no room for another one.",
                    param="coterie.domain",
                )  # fmt: skip
            self._used.add(name)
        return name

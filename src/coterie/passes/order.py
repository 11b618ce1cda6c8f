"""Which experts follow which in a forward pass: what a prefill will ask for next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from coterie.passes.current import carried
from coterie.spec import ExpertKey

_SHARE = 0.75
"""Share of a layer's experts that a prefill uses, from which on those of the next layer are read before they are asked
for. Of what is read early, the rest is for nothing."""


class _Place:
    """Where a thread's forward passes asked for experts last."""

    number = -1
    site: str | None = None


class LayerOrder:
    """The places of one component where experts are computed, in the order in which forward passes come to them.

    Until a pass has gone on from a place, that is the order in which they were added.
    """

    def __init__(self) -> None:
        self._keys: dict[str, Sequence[ExpertKey]] = {}
        self._followers: dict[str, str | None] = {}
        self._last: str | None = None

    def add(self, site: str, keys: Sequence[ExpertKey]) -> None:
        """Adds a place behind the others.

        Args:
            site: Names it.
            keys: All experts that can be asked for there, in the order in which they are computed.
        """
        if self._last is not None:
            self._followers[self._last] = site
        self._keys[site] = keys
        self._last = site

    def reached(self, site: str, number: int, wanted: int) -> Iterable[ExpertKey]:
        """A prefill asks for experts.

        Args:
            site: Where.
            number: The pass's.
            wanted: How many different experts it asks for.

        Returns:
            What the rest of the pass will most probably ask for, soonest first; nothing if too much of it is unsure.
        """
        place = carried(self, _Place)
        if place.site is not None:
            self._followers[place.site] = site if place.number == number else None
        place.number, place.site = number, site
        return self._after(site) if wanted >= _SHARE * len(self._keys[site]) else ()

    def _after(self, site: str) -> Iterator[ExpertKey]:
        seen = {site}
        follower = self._followers.get(site)
        while follower is not None and follower not in seen:
            seen.add(follower)
            yield from self._keys[follower]
            follower = self._followers.get(follower)

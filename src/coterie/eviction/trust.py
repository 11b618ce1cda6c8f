"""Evicts what is least likely to be used soon, as learned and as a profile made one expect."""

from __future__ import annotations

from collections.abc import Mapping

from coterie.eviction.markov import MarkovPolicy
from coterie.eviction.protocol import K
from coterie.eviction.visit_history import Visit


class TrustPolicy(MarkovPolicy[K]):
    """:class:`~coterie.eviction.MarkovPolicy` that knows beforehand how often each expert is used.

    What is expected of an expert and what is seen of its use at any time count equally (see
    :class:`~coterie.eviction.visit_history.VisitHistory`). What came after moments like the present one is learned as
    ever. So a profile of the right kind of text is worth most at the beginning, and one of another kind never stops
    misleading a little.

    Args:
        expected: Key → uses per visit, between 0 and 1; keys that are not named are not expected at all.
    """

    def __init__(self, expected: Mapping[K, float]) -> None:
        super().__init__()
        self._expected = expected

    def expect(self, expected: Mapping[K, float]) -> None:
        """Expects something else from now on."""
        self._expected = expected
        for key, (visit, number) in self._places.items():
            self._history.expect(visit.bank, number, expected.get(key, 0.0))

    def _meet(self, key: K) -> tuple[Visit, int]:
        place = super()._meet(key)
        self._history.expect(place[0].bank, place[1], self._expected.get(key, 0.0))
        return place

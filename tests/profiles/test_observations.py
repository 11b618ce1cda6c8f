"""What is observed elsewhere and counted later gives the same counters, to the last bit."""

import pickle

import numpy as np

from coterie.profiles import Accumulator
from coterie.profiles.observations import Counting, Observations
from profiles.contents import same_segments
from profiles.synthetic import shapes

BANKS = shapes(layers=3, experts=8, top_k=2)
DOMAINS = ("code", "law", "code", "talk")


class Counters(Accumulator):
    """Counters as observations are counted into."""

    banks = BANKS

    def boundary(self) -> None:
        raise AssertionError("an input does not end in its middle")


def tell(counting: Counting, seed: int) -> None:
    """One input: rows of each bank, some of them for all tokens of one group."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(1, 90))
    groups = np.array([counting.group("text", DOMAINS[seed % 4], "prompt"), counting.group("image", "law", "prompt")])
    ids, weights, outputs = np.empty((tokens, 2), np.uint16), np.empty((tokens, 2), np.float32), None
    token_ids = rng.integers(0, 20, tokens)
    for number, shape in enumerate(BANKS):
        # The same memory for each bank, as the engine's own buffers are.
        ids[:] = np.argsort(rng.random((tokens, 8)), axis=1)[:, :2]
        weights[:] = rng.random((tokens, 2), dtype=np.float32)
        outputs = None if number == 1 else rng.random((tokens, 2), dtype=np.float32)
        of = int(groups[0]) if number == 2 else groups[rng.integers(0, 2, tokens)].astype(np.uint8)
        counting.add(shape.bank, ids, weights, outputs, of, None if number == 0 else 5 if number == 2 else token_ids)


def test_counters_are_the_same() -> None:
    straight, later = (Counters(BANKS, vocabulary=4, buffer_tokens=64) for _ in range(2))
    segments: list[list] = [[], []]
    for seed in range(12):
        tell(straight, seed)
        observed = Observations(BANKS)
        tell(observed, seed)
        observed.boundary()
        pickle.loads(pickle.dumps(observed)).count_into(later)
        if seed % 4 == 3:
            for found, counters in zip(segments, (straight, later), strict=True):
                found.append(counters.take(len(found)))
    assert straight.groups == later.groups
    assert same_segments(*segments)
    ours, theirs = straight.vocabulary(3), later.vocabulary(3)
    for one, other in zip([*ours.banks.values(), *ours.totals.values()],
                          [*theirs.banks.values(), *theirs.totals.values()], strict=True):  # fmt: skip
        for name in ("experts", "tokens", "counts", "dropped"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))

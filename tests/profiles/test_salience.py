"""Each part of salience is its formula's, by hand."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import UsageError
from coterie.profiles.salience import HORIZON, RESERVOIR, RunningMean, SalienceRank, SalienceScale

TWO = [np.array([0, 2]), np.array([1, 3])]
GATES = [np.array([0.75, 0.25]), np.array([0.4, 0.4])]


def test_surprise_is_loss_against_its_mean_before():
    scale = SalienceScale([4, 4])
    found = [scale.score(TWO, GATES, loss=loss).surprise for loss in (2.0, 6.0, 0.0, None, 4.0)]
    assert found[3] is None
    del found[3]
    assert found == pytest.approx([0.5, 6 / (6 + 2), 0.0, 4 / (4 + (2 + 6 + 0) / 3)])


def test_arousal_is_the_mean_over_layers_of_size_against_its_mean():
    scale = SalienceScale([4, 4])
    sizes = [(1.0, 10.0), (3.0, 10.0), (2.0, 0.0)]
    found = [scale.score(TWO, GATES, sizes=np.array(size)).arousal for size in sizes]
    assert found == pytest.approx([0.5, (3 / 4 + 1 / 2) / 2, (2 / 4 + 0) / 2])
    assert scale.score(TWO, GATES).arousal is None


def test_nothing_against_nothing_is_as_usual():
    assert SalienceScale([4]).score(TWO[:1], GATES[:1], loss=0.0).surprise == 0.5


def test_conflict_is_the_normalised_entropy_of_the_weights():
    scale = SalienceScale([4, 4])
    first = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert scale.score(TWO, GATES).conflict == pytest.approx((first + 1) / 2)
    # No slot without an expert has a share, and a negative weight is none.
    ids, weights = [np.array([0, 4, 2, 1])], [np.array([0.5, 7.0, 0.5, -1.0])]
    assert SalienceScale([4]).score(ids, weights).conflict == pytest.approx(math.log(2) / math.log(4))
    assert SalienceScale([4]).score([np.array([3])], [np.array([0.2])]).conflict == 0.0
    assert SalienceScale([4]).score([np.array([4])], [np.array([0.2])]).conflict == 0.0


def test_novelty_is_the_distance_from_the_nearest_signature():
    scale = SalienceScale([4])
    one, other = np.array([0, 1]), np.array([1, 2])
    assert scale.score([one], [np.array([1.0, 0.0])]).novelty == 1.0
    assert scale.score([other], [np.array([0.5, 0.5])]).novelty == pytest.approx(1.0)
    third = scale.score([np.array([0, 1])], [np.array([3.0, 4.0])])
    assert third.novelty == pytest.approx(1 - max(3 / 5, 4 / 5 / math.sqrt(2)))
    assert scale.score([one], [np.array([6.0, 8.0])]).novelty == pytest.approx(0.0, abs=1e-6)


def test_layers_count_alike_whatever_their_weights_sum_to():
    scale = SalienceScale([2, 2])
    scale.score([np.array([0]), np.array([0])], [np.array([9.0]), np.array([1.0])])
    found = scale.score([np.array([0]), np.array([1])], [np.array([1.0]), np.array([5.0])])
    assert found.novelty == pytest.approx(0.5)


def test_old_signatures_make_room_at_random_by_the_seed():
    def novelties(seed: int) -> list[float]:
        scale, many = SalienceScale([4 * RESERVOIR], seed=seed), 4 * RESERVOIR
        for expert in range(many):
            scale.score([np.array([expert])], [np.array([1.0])])
        # Each is asked of what is kept at the end: asking, too, takes a place.
        return [copy.deepcopy(scale).score([np.array([expert])], [np.array([1.0])]).novelty for expert in range(many)]

    first = novelties(0)
    assert first == novelties(0)
    assert first != novelties(1)
    assert (first[-1], sum(one == 0.0 for one in first)) == (0.0, RESERVOIR)
    # A new one takes the place of any of those kept, so that most of them are recent.
    assert sum(first[: 2 * RESERVOIR]) > sum(first[2 * RESERVOIR :])


def test_overall_is_the_mean_of_what_is_known():
    scale = SalienceScale([4, 4])
    scale.reward = 0.8
    found = scale.score(TWO, GATES, loss=3.0, sizes=np.ones(2))
    parts = (found.surprise, found.novelty, found.arousal, 0.8, found.conflict)
    assert found.overall == pytest.approx(sum(parts) / 5)
    found = scale.score(TWO, GATES)
    assert found.overall == pytest.approx((found.novelty + 0.8 + found.conflict) / 3)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError):
            scale.reward = value


def test_a_running_mean_forgets():
    mean = RunningMean()
    for _ in range(HORIZON):
        mean.compare(np.array([1.0]))
    mean.compare(np.array([1.0 + HORIZON]))
    assert mean.mean == pytest.approx([2.0])


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 9), min_size=3, max_size=3, unique=True),
            st.lists(st.floats(-1, 100), min_size=3, max_size=3),
            st.floats(0, 1e6),
            st.floats(0, 1e6),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_every_part_is_between_0_and_1(tokens):
    scale = SalienceScale([8])
    for ids, weights, loss, size in tokens:
        found = scale.score([np.array(ids)], [np.array(weights)], loss=loss, sizes=np.array([size]))
        for part in (found.surprise, found.novelty, found.arousal, found.reward, found.conflict, found.overall):
            assert 0.0 <= part <= 1.0


def test_a_rank_is_the_share_of_lower_ones_lately():
    rank, seen = SalienceRank(), []
    values = np.random.default_rng(0).integers(0, 40, 3 * HORIZON) / 40
    for value in values.tolist():
        recent = seen[-HORIZON:]
        expected = None
        if len(recent) >= 8:
            expected = (sum(one < value for one in recent) + sum(one <= value for one in recent)) / 2 / len(recent)
        assert rank.rank(value) == expected
        seen.append(value)

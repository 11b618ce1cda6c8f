import numpy as np
import pytest

from coterie.analysis import effective_rank
from coterie.analysis.neighbours import nearest_experts
from coterie.analysis.rotation import haar
from coterie.analysis.spectrum import Reading, overlap, random_effective_rank, random_overlaps


def test_effective_rank_of_known_spectra():
    assert effective_rank(np.eye(5, 9)) == pytest.approx(5)
    assert effective_rank(np.outer(np.arange(1, 5), np.ones(7))) == pytest.approx(1)
    shares = np.array([0.5, 0.25, 0.25])
    assert effective_rank(np.diag(shares)) == pytest.approx(2**1.5)
    assert effective_rank(np.zeros((3, 3))) == 0
    assert 20 < random_effective_rank(24, 64, 0) < 24


def test_overlap_ignores_the_order_of_experts_and_what_they_share():
    rows = np.random.default_rng(0).standard_normal((8, 30))
    same = Reading.of(3 * rows[::-1] + np.arange(30))
    assert overlap(Reading.of(rows), same) == pytest.approx(1)
    first, second = np.zeros((4, 30)), np.zeros((6, 30))
    first[:, :4], second[:, 4:10] = np.eye(4), np.eye(6)
    assert overlap(Reading.of(first), Reading.of(second)) == pytest.approx(0)
    assert overlap(Reading.of(np.ones((3, 5))), Reading.of(rows[:, :5])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("width", [10, 40])
def test_random_overlaps_are_those_of_rotated_rows(width):
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((8, width)) * np.geomspace(1, 0.1, width), rng.standard_normal((6, width))
    one, other = Reading.of(first), Reading.of(second)
    drawn = random_overlaps(one, other, np.random.default_rng(1), 400)
    turned = np.array([overlap(one, Reading.of(second @ haar(width, rng))) for _ in range(400)])
    a, b = one.strengths**2, other.strengths**2
    expected = a.sum() * b.sum() / (width * np.sqrt((a**2).sum() * (b**2).sum()))
    assert drawn.mean() == pytest.approx(expected, rel=0.05)
    assert turned.mean() == pytest.approx(expected, rel=0.05)
    assert drawn.std() == pytest.approx(turned.std(), rel=0.2)


def test_neighbours_are_by_cosine():
    rows = np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [1.0, 1.0]])
    found = nearest_experts(rows, 0, 2)
    assert [one.expert_id for one in found] == [1, 3]
    assert found[1].cosine == pytest.approx(2**-0.5)
    assert found[0].deviations > found[1].deviations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coterie.errors import ProfileError
from coterie.profiles.inference import (
    MOST_BLOCKS,
    Sample,
    above,
    block_numbers,
    difference,
    false_discovery_rates,
    share_interval,
)


def independent(rng: np.random.Generator, blocks: int, tokens: int, shares: np.ndarray) -> Sample:
    sizes = np.full(blocks, tokens)
    return Sample(sizes.astype(float), rng.binomial(tokens, shares, (blocks, len(shares))).astype(float))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_q_values_are_those_of_scipy(p_values) -> None:
    expected = stats.false_discovery_control(np.array(p_values), method="bh")
    assert false_discovery_rates(np.array(p_values)) == pytest.approx(expected)


def test_what_was_not_tested_does_not_count() -> None:
    p_values = np.array([[0.01, np.nan], [0.04, np.nan]])
    found = false_discovery_rates(p_values)
    assert found[:, 0] == pytest.approx([0.02, 0.04])
    assert np.isnan(found[:, 1]).all()


@given(st.lists(st.integers(0, 500), min_size=1, max_size=70))
def test_blocks_are_consecutive_few_and_about_equal(tokens) -> None:
    sizes = np.array(tokens)
    blocks = block_numbers(sizes)
    assert blocks[0] == 0
    assert set(np.diff(blocks)) <= {0, 1}
    assert blocks[-1] < MOST_BLOCKS
    if sizes.sum():
        totals = np.bincount(blocks, sizes)
        assert totals.max() <= sizes.sum() / min(MOST_BLOCKS, len(sizes)) + 2 * sizes.max()


def test_intervals_of_independent_tokens_are_clopper_and_pearsons() -> None:
    # Equal blocks with equal hits: no design effect, so only the degrees of freedom widen the interval.
    sample = Sample(np.full(32, 100.0), np.full((32, 1), 7.0))
    low, high = share_interval(sample)
    exact = stats.binomtest(224, 3200).proportion_ci(method="exact")
    ratio = (stats.t.ppf(0.975, 31) / stats.t.ppf(0.975, 3199)) ** 2
    fewer = stats.beta.ppf([0.025, 0.975], [224 / ratio, 224 / ratio + 1], [2976 / ratio + 1, 2976 / ratio])
    assert [low[0], high[0]] == pytest.approx(fewer)
    assert low[0] < exact.low < 0.07 < exact.high < high[0]


def test_intervals_hold_what_they_promise_for_bursts() -> None:
    rng = np.random.default_rng(0)
    # Each block has a share of its own around 10 %; a thousand recordings of twenty blocks.
    hits = rng.binomial(200, rng.beta(2, 18, (20, 1000))).astype(float)
    low, high = share_interval(Sample(np.full(20, 200.0), hits))
    assert ((low <= 0.1) & (high >= 0.1)).mean() >= 0.91
    # Taking tokens for independent misses most of the time: the test can tell.
    total = hits.sum(axis=0)
    exact = stats.beta.ppf(0.025, total, 4001 - total), stats.beta.ppf(0.975, total + 1, 4000 - total)
    assert ((exact[0] <= 0.1) & (exact[1] >= 0.1)).mean() < 0.6


def test_a_share_that_is_never_or_always_has_one_open_end() -> None:
    low, high = share_interval(Sample(np.full(8, 50.0), np.stack([np.zeros(8), np.full(8, 50.0)], axis=1)))
    assert (low[0], high[1]) == (0, 1)
    assert 0 < high[0] < 0.05
    assert 0.95 < low[1] < 1


def test_p_values_are_uniform_where_nothing_is_there() -> None:
    rng = np.random.default_rng(1)
    sample = independent(rng, 16, 300, np.full(4000, 0.0625))
    p_values = above(sample, 0.0625)
    assert 0.03 < (p_values <= 0.05).mean() < 0.06
    two = difference(sample, independent(rng, 12, 300, np.full(4000, 0.0625)))
    # Never less variance than of independent tokens: a little on the safe side.
    assert 0.01 < (two.p_differs <= 0.05).mean() < 0.055
    assert 0.945 < ((two.low <= 0) & (two.high >= 0)).mean() < 0.99


def test_p_values_find_what_is_there() -> None:
    rng = np.random.default_rng(2)
    shares = np.array([0.2, 0.0625, 0.01])
    p_values = above(independent(rng, 16, 300, shares), 0.0625)
    assert p_values[0] < 1e-6 < 0.01 < p_values[1] < 0.999 < p_values[2]
    found = difference(independent(rng, 8, 300, shares), independent(rng, 8, 300, shares[::-1]))
    assert found.p_above[0] < 1e-4
    assert found.p_below[2] < 1e-4
    assert found.value[0] == pytest.approx(0.19, abs=0.03)
    assert found.low[0] < found.value[0] < found.high[0]


def test_the_difference_is_welchs_for_blocks_of_one_size() -> None:
    rng = np.random.default_rng(3)
    one, two = rng.integers(0, 100, (9, 1)).astype(float), rng.integers(0, 60, (7, 1)).astype(float)
    found = difference(Sample(np.full(9, 100.0), one), Sample(np.full(7, 100.0), two))
    expected = stats.ttest_ind(one / 100, two / 100, equal_var=False)
    assert found.p_differs == pytest.approx(expected.pvalue)
    assert found.p_above == pytest.approx(stats.ttest_ind(one, two, equal_var=False, alternative="greater").pvalue)


def test_without_scipy_the_way_to_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ProfileError, match=r"pip install .*'scipy>="):
        share_interval(Sample(np.full(4, 10.0), np.ones((4, 1))))


def test_what_only_records_and_merges_loads_no_scipy() -> None:
    script = "import sys, coterie.profiles, coterie.cli.profile; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("blocks", [0, 1])
def test_nothing_is_said_of_too_few_blocks(blocks) -> None:
    sample = Sample(np.full(blocks, 100.0), np.full((blocks, 2), 50.0))
    low, high = share_interval(sample)
    other = Sample(np.full(5, 100.0), np.full((5, 2), 5.0))
    for values in (low, high, above(sample, 0.1), difference(sample, other).p_above, difference(other, sample).low):
        assert np.isnan(values).all()

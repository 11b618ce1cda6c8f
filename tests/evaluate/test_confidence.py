import numpy as np
import pytest

from coterie.evaluate import block_starts, mean_estimate
from coterie.evaluate.confidence import student_quantile


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (11, 2.2010), (30, 2.0423), (120, 1.9799)],
)
def test_student_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    assert student_quantile(freedom) == pytest.approx(expected, abs=5e-5)


def test_blocks_of_one_size_give_the_usual_interval_of_their_means() -> None:
    values = np.random.default_rng(0).gamma(1.0, 2.0, size=600)
    estimate = mean_estimate([values], [np.arange(0, 600, 50)])
    means = values.reshape(12, 50).mean(axis=1)
    half = 2.2010 * means.std(ddof=1) / np.sqrt(12)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=1e-4)


def correlated(rng: np.random.Generator, tokens: int, window: int) -> np.ndarray:
    """Skewed values around 1 whose level drifts from token to token and jumps from window to window."""
    level = np.empty(tokens)
    level[0] = rng.normal()
    for i, shock in enumerate(rng.normal(size=tokens - 1)):
        level[i + 1] = 0.95 * level[i] + np.sqrt(1 - 0.95**2) * shock
    jumps = np.repeat(rng.normal(size=tokens // window + 1), window)[:tokens]
    return rng.gamma(1.0, 1.0, size=tokens) + 0.4 * level + 0.3 * jumps


def test_intervals_cover_the_truth_as_often_as_they_say_where_a_naive_one_does_not() -> None:
    rng = np.random.default_rng(7)
    windows = [64] * 24 + [40]
    starts = block_starts(windows, 64)
    covered = naive = 0
    for _ in range(300):
        values = correlated(rng, sum(windows), 64)
        estimate = mean_estimate([values], [starts])
        covered += estimate.low <= 1.0 <= estimate.high
        naive += abs(values.mean() - 1.0) <= 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert 0.91 <= covered / 300 <= 0.99
    assert naive / 300 < 0.7


def test_several_texts_are_strata_whose_own_means_add_no_variance() -> None:
    rng = np.random.default_rng(3)
    texts = [rng.normal(size=512), 100 + rng.normal(size=1024)]
    starts = [np.arange(0, len(text), 64) for text in texts]
    estimate = mean_estimate(texts, starts)
    assert estimate.value == pytest.approx((texts[0].sum() + texts[1].sum()) / 1536)
    assert estimate.high - estimate.low < 0.3


def test_short_texts_are_put_together_and_never_make_an_interval_narrower() -> None:
    long, short = np.random.default_rng(4).normal(size=640), np.full(64, 3.0)
    starts = np.arange(0, 640, 64)
    alone = mean_estimate([short], [np.array([0])])
    assert (alone.value, alone.low, alone.high) == (3.0, None, None)
    joined = mean_estimate([long, short], [starts, np.array([0])])
    assert joined.high - joined.low > 2 * 0.1
    pair = mean_estimate([short, short + 1], [np.array([0]), np.array([0])])
    assert pair.low < 3.5 < pair.high


def test_an_interval_needs_finite_values() -> None:
    estimate = mean_estimate([np.array([1.0, np.inf, 2.0, 3.0])], [np.array([0, 2])])
    assert (estimate.value, estimate.low, estimate.high) == (np.inf, None, None)


def test_blocks_are_whole_windows_as_long_as_the_context_and_the_root_of_the_text() -> None:
    assert block_starts([64] * 4 + [10], 64).tolist() == [0, 64, 128, 192]
    assert block_starts([16] * 10, 64).tolist() == [0, 64]  # overlapping windows share their context
    starts = block_starts([4] * 400, 4)
    assert np.diff(np.append(starts, 1600)).min() == 40
    assert block_starts([5], 64).tolist() == [0]

"""Clusters against scikit-learn's own figures, and the null against its law."""

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from coterie.analysis.agreement import match_groups, rand_indices
from coterie.analysis.clusters import cluster_rows, silhouettes, ward_partitions
from coterie.analysis.rotation import Rotations, coordinates, directions
from coterie.analysis.significance import pooled_p_values


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((20, 50)) + 0.3


def test_partitions_and_silhouettes_are_scikit_learns(rows):
    unit = directions(rows)
    for number, labels in zip([2, 3, 7], ward_partitions(unit, [2, 3, 7]), strict=True):
        other = AgglomerativeClustering(number).fit_predict(unit)
        assert adjusted_rand_score(labels, other) == 1
        ours = silhouettes(1 - unit @ unit.T, labels)
        assert np.allclose(ours, silhouette_samples(unit, labels, metric="cosine"))


def test_coordinates_keep_lengths_and_angles(rows):
    points = coordinates(rows)
    assert points.shape == (20, 20)
    assert np.allclose(points @ points.T, rows @ rows.T)


def test_rotations_keep_mean_and_covariance_and_change_the_rest(rows):
    points = coordinates(rows)
    drawn = Rotations(points).draw(np.random.default_rng(1))
    assert np.allclose(drawn.mean(axis=0), points.mean(axis=0))
    assert np.allclose(drawn.T @ drawn, points.T @ points)
    assert not np.allclose(drawn @ drawn.T, points @ points.T)


def test_random_rows_have_uniform_p_values():
    found = []
    for seed in range(40):
        rng = np.random.default_rng([seed, 1])
        rows = (rng.standard_normal((12, 30)) + 1) * np.geomspace(1, 0.1, 30)
        clustering = cluster_rows(rows, rng, draws=19)
        found.append(pooled_p_values(np.array([clustering.silhouette]), clustering.chance[None])[0])
    # Of 40 tests at 10 %, more than 10 are rejected once in 600 times; the seeds are fixed.
    assert 0 < np.mean(np.array(found) <= 0.1) <= 0.25
    assert 0.35 < np.mean(found) < 0.65


def test_pooled_p_values():
    chance = np.array([[0.0, 1.0, 2.0], [0.0, 10.0, 20.0]])
    # Standardised, the draws of both are −1, 0 and 1.
    assert pooled_p_values(np.array([5.0, 10.0]), chance).tolist() == [1 / 7, 5 / 7]
    assert pooled_p_values(np.array([2.0]), chance[:1]).tolist() == [2 / 4]
    found = pooled_p_values(np.array([np.nan, 10.0]), chance)
    assert np.isnan(found[0])
    assert found[1] == 3 / 4


def test_rand_indices_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels, others = rng.integers(0, 4, 30), rng.integers(0, 3, (10, 30))
    expected = [adjusted_rand_score(labels, other) for other in others]
    assert np.allclose(rand_indices(labels, others), expected)
    assert rand_indices(labels, labels[None]).tolist() == [1.0]


def test_nothing_is_compared_where_there_is_one_group():
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 1, 1])
    assert match_groups(labels, ("a", "b"), np.array([1, 1, -1, 1]), rng, 9) is None
    # The expert that was never selected is left out: the others agree.
    found = match_groups(labels, ("a", "b"), np.array([0, 0, 1, -1]), rng, 9)
    assert found.rand_index == 1
    assert found.groups == {"a": 2, "b": 1}


def test_equal_rows_are_no_error():
    clustering = cluster_rows(np.ones((6, 4)), np.random.default_rng(0), draws=3)
    assert clustering.silhouette == pytest.approx(0, abs=1e-6)

import numpy as np
import pytest

from coterie.errors import UsageError
from coterie.profiles import Profile, expert_load, gini, lorenz_curve, separation, top_share
from profiles.conftest import write_profile
from profiles.synthetic import Router, run_facts, shapes


def test_gini_of_known_values():
    assert gini(np.ones(7)) == pytest.approx(0)
    assert gini(np.array([0.0, 0.0, 0.0, 5.0])) == pytest.approx(0.75)
    values = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    mean_difference = np.abs(np.subtract.outer(values, values)).mean()
    assert gini(values) == pytest.approx(mean_difference / (2 * values.mean()))
    assert gini(np.zeros(3)) == 0


def test_lorenz_curve_and_top_share():
    assert lorenz_curve(np.array([3.0, 1.0])).tolist() == [0, 0.25, 1]
    assert lorenz_curve(np.zeros(2)).tolist() == [0, 0.5, 1]
    assert top_share(np.ones(32), 0.1) == pytest.approx(0.1)
    assert top_share(np.arange(10.0), 0.1) == pytest.approx(9 / 45)
    # 10 % of five experts is half of one.
    assert top_share(np.array([1.0, 1.0, 1.0, 1.0, 6.0]), 0.1) == pytest.approx(0.3)


def test_load_counts_activations(planted):
    profile = Profile.open(planted)
    load = expert_load(profile, domain="code")
    assert [(one.layer, one.tokens, one.unused) for one in load.layers] == [(0, 1024, 0), (1, 1024, 0)]
    # Half of the activations of layer 0 are expert 3's, the rest is spread over seven.
    assert load.layers[0].shares[-1] == 0.5
    assert load.layers[0].gini > 0.3 > load.layers[1].gini
    assert load.layers[0].lorenz[-2] == pytest.approx(0.5)
    assert sum(load.layers[0].shares) == pytest.approx(1)
    table = next(iter(profile.banks.values()))
    whole = table.activations.sum(axis=0).astype(float)
    assert expert_load(profile).layers[0].gini == gini(whole)
    with pytest.raises(UsageError, match="Valid: 'code', 'law', 'prose'"):
        expert_load(profile, domain="cod")
    with pytest.raises(UsageError, match="No token of the profile"):
        expert_load(profile, domain="code", phase="generated")


@pytest.fixture
def two_modalities(tmp_path):
    """Pictures have experts of their own in layer 1, and are like text in layer 0."""
    router = Router(planted={(1, "photos"): (5, 6)})
    for seed, (modality, domain) in enumerate((("text", "prose"), ("image", "photos"))):
        facts = run_facts(shapes())
        write_profile(tmp_path / "p.db", router, {domain: 24}, run=facts, modality=modality, seed=seed)
    return Profile.open(tmp_path / "p.db")


@pytest.mark.parametrize("by", ["modality", "domain"])
def test_separation_shows_where_groups_differ(two_modalities, by):
    found = separation(two_modalities, by)
    names = {"modality": ("image", "text"), "domain": ("photos", "prose")}[by]
    assert [(one.layer, one.first, one.second) for one in found.layers] == [(0, *names), (1, *names)]
    same, planted = found.layers
    assert same.divergence < 2 * same.floor < 0.02
    assert planted.divergence > 0.5 > 10 * planted.floor
    assert found.tokens == dict.fromkeys(names, 24 * 64)


def test_one_group_is_not_separated(planted):
    with pytest.raises(UsageError, match="tokens of 'text' only: no two modalities"):
        separation(Profile.open(planted))
    assert len(separation(Profile.open(planted), "domain").layers) == 2 * 3


def test_halves_take_two_blocks(tmp_path):
    write_profile(tmp_path / "p.db", Router(), {"code": 2, "law": 2})
    found = separation(Profile.open(tmp_path / "p.db"), "domain")
    assert {one.floor for one in found.layers} == {None}

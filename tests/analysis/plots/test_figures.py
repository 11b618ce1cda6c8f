"""What is drawn is what the profile says: the artists of each figure against figures worked out beside them."""

import numpy as np
import pytest

from coterie.analysis import (
    activation_figure,
    coactivation_figure,
    load_figure,
    residency_figure,
    separation_figure,
)
from coterie.analysis.plots.coactivation import companions_first
from coterie.analysis.plots.residency import averaged, running_mean
from coterie.errors import UsageError
from coterie.eviction import read_trace, timeline
from coterie.profiles import Accumulator, Profile, ProfileDatabase, expert_load, separation
from profiles.conftest import planted, planted_once, write_profile  # noqa: F401 - a fixture
from profiles.synthetic import Router, run_facts, shapes


def shown(axes) -> np.ndarray:
    """The numbers of the map that axes hold."""
    (image,) = axes.images
    return np.ma.filled(image.get_array(), np.nan)


@pytest.fixture
def profile(planted):  # noqa: F811
    return Profile.open(planted)


def test_activation_is_the_share_of_tokens(profile):
    axes, bar = activation_figure(profile, domain="code").axes
    for row, table in zip(shown(axes), profile.banks.values(), strict=True):
        rows = table.rows(profile.where(domain="code"))
        assert row == pytest.approx(100 * table.activations[rows].sum(axis=0) / table.tokens[rows].sum())
    assert shown(axes)[0, 3] == 100
    assert axes.images[0].get_clim() == (0, 100)
    assert bar.get_ylabel() == "share of tokens that select the expert (%)"
    # The mark of chance: 2 of 8.
    assert [line.get_ydata()[0] for line in bar.lines] == [25]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("expert", "layer")


def test_differences_are_centred_at_zero(profile):
    figure = activation_figure(profile, domain="code", against="prose")
    first, second = (shown(activation_figure(profile, domain=name).axes[0]) for name in ("code", "prose"))
    image = figure.axes[0].images[0]
    assert shown(figure.axes[0]) == pytest.approx(first - second)
    low, high = image.get_clim()
    assert low == -high
    assert np.allclose(image.cmap(0.5)[:3], 0.97, atol=0.02)
    # Neither end is red or green: blue leads at the one, blue is least at the other.
    assert np.argmax(image.cmap(0.0)[:3]) == 2
    assert np.argmin(image.cmap(1.0)[:3]) == 2
    assert "code, 1,024 tokens − prose, 1,024 tokens" in figure.get_suptitle()


def test_unknown_names_are_refused_with_those_there_are(profile):
    with pytest.raises(UsageError, match="Valid: 'code', 'law', 'prose'"):
        activation_figure(profile, domain="prosa")
    with pytest.raises(UsageError, match="Valid: 'code', 'law', 'prose'"):
        activation_figure(profile, domain="code", against="prosa")
    with pytest.raises(UsageError, match="nothing to compare with 'prose'"):
        activation_figure(profile, against="prose")
    with pytest.raises(UsageError, match="No token of the profile is all of these: code, generated"):
        activation_figure(profile, domain="code", phase="generated")
    with pytest.raises(UsageError, match="Valid: 'text'"):
        load_figure(profile, component="thinker")


def test_several_components_have_to_be_chosen_from(tmp_path):
    banks = (*shapes(1, experts=4), *shapes(1, experts=8, component="vision"))
    run = run_facts(banks)
    accumulator = Accumulator(banks, vocabulary=0)
    group = accumulator.group("text", "code", "prompt")
    for bank, ids in zip(banks, ([[0, 1]], [[6, 7]]), strict=True):
        accumulator.add(
            bank.bank, np.array(ids, np.uint16), np.full((1, 2), 0.5, np.float32), None, group, np.array([1])
        )
    with ProfileDatabase(tmp_path / "p.db", create=True) as database:
        database.add_run(run)
        database.write_segment(run.uuid, accumulator.take(0))
    found = Profile.open(tmp_path / "p.db")
    with pytest.raises(UsageError, match="several components: text, vision"):
        activation_figure(found)
    assert shown(activation_figure(found, component="vision").axes[0]).tolist() == [[0, 0, 0, 0, 0, 0, 100, 100]]


def test_separation_draws_curves_and_floors(profile):
    figure = separation_figure(profile, "domain")
    found = separation(profile, "domain")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    for first, second in (("code", "law"), ("code", "prose"), ("law", "prose")):
        own = [one for one in found.layers if (one.first, one.second) == (first, second)]
        name = f"{first} – {second}"
        assert lines[name].get_ydata() == pytest.approx([one.divergence for one in own])
        assert lines[f"{name}: noise floor"].get_ydata() == pytest.approx([one.floor for one in own])
    curves = [line for name, line in lines.items() if "noise" not in name]
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert len({getattr(line, look)() for line in curves}) == 3
    assert figure.axes[0].get_ylabel() == "Jensen–Shannon divergence (bits)"


def test_load_draws_gini_and_lorenz_curves(profile):
    left, right = load_figure(profile, domain="code").axes
    load = expert_load(profile, domain="code")
    gini, top, even = left.lines
    assert list(gini.get_ydata()) == [layer.gini for layer in load.layers]
    assert list(top.get_ydata()) == [layer.top_share for layer in load.layers]
    assert even.get_ydata()[0] == 0.1
    assert right.lines[0].get_ydata() == pytest.approx(100 * np.array(load.layers[0].lorenz))
    assert list(right.lines[-1].get_ydata()) == [0, 100]


@pytest.fixture
def companions(tmp_path):
    """Experts 5 and 6 of layer 1 are chosen together for prose."""
    path = tmp_path / "p.db"
    write_profile(path, Router(experts=16, top_k=4, planted={(1, "prose"): (5, 12)}), {"prose": 16, "code": 16})
    return path


def test_coactivation_puts_companions_side_by_side(companions):
    with ProfileDatabase(companions) as database:
        found = Profile.read(database)
        figure = coactivation_figure(found, database, 1)
        share = coactivation_figure(found, database, 1, measure="share")
        with pytest.raises(UsageError, match="It has layers 0, 1"):
            coactivation_figure(found, database, 7)
    values = shown(figure.axes[0])
    assert np.isnan(np.diag(values)).all()
    assert values == pytest.approx(values.T, nan_ok=True)
    highest = np.unravel_index(np.nanargmax(values), values.shape)
    assert abs(int(highest[0]) - int(highest[1])) == 1
    low, high = figure.axes[0].images[0].get_clim()
    assert low == -high
    # Of the tokens that select expert 5, nearly all of prose select 12 as well.
    assert 50 < np.nanmax(shown(share.axes[0])) <= 100


def test_order_of_experts():
    lift = np.ones((6, 6))
    for one, other in ((0, 5), (2, 4)):
        lift[one, other] = lift[other, one] = 9
    order = companions_first(lift).tolist()
    assert sorted(order) == list(range(6))
    assert abs(order.index(0) - order.index(5)) == abs(order.index(2) - order.index(4)) == 1
    assert companions_first(np.ones((2, 2))).tolist() == [0, 1]


@pytest.fixture
def run(tmp_path):
    ids = np.random.default_rng(0).integers(0, 8, (60, 3, 1)) + np.array([0, 8])
    np.savez(tmp_path / "t.npz", expert_ids=ids.astype(np.uint16), sequence_lengths=[60], num_experts=16, model="tiny")
    return timeline(read_trace(tmp_path / "t.npz"), 12, "lru")


def test_residency_draws_what_is_resident(run):
    figure = residency_figure(run)
    above, below = figure.axes[:2]
    assert shown(below) == pytest.approx(np.array([step.resident for step in run.steps]).T)
    each, smooth, mean = above.lines
    assert each.get_ydata() == pytest.approx([100 * step.hits / step.requests for step in run.steps])
    assert smooth.get_ydata()[-1] == pytest.approx(
        100 * sum(step.hits for step in run.steps[-16:]) / sum(step.requests for step in run.steps[-16:])
    )
    assert mean.get_ydata()[0] == pytest.approx(100 * run.hit_rate)
    assert "12 of 48 experts fit, lru" in figure.get_suptitle()
    with pytest.raises(UsageError, match="Valid: 'text'"):
        residency_figure(run, component="talker")


def test_long_runs_are_averaged():
    table = np.arange(12.0).reshape(2, 6)
    assert averaged(table, 3).tolist() == [[0.5, 2.5, 4.5], [6.5, 8.5, 10.5]]
    assert averaged(table, 4).mean() == pytest.approx(table.mean(), abs=0.5)
    assert averaged(table, 6) is table
    means = running_mean(np.array([1.0, 0.0, 0.5]), np.array([1.0, 3.0, 0.0]), 2)
    assert means.tolist() == [1.0, 0.25, 0.0]

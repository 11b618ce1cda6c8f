import json
import math

import numpy as np
import pytest

from coterie.evaluate import Evaluation, ModelFacts, TokenScores, measure


def scores(seed: int, tokens: int) -> TokenScores:
    rng = np.random.default_rng(seed)
    full = rng.gamma(2.0, 1.0, size=tokens)
    return TokenScores(
        loss=full + rng.normal(0.05, 0.1, size=tokens),
        correct=rng.random(tokens) < 0.4,
        full_loss=full,
        full_correct=rng.random(tokens) < 0.5,
        kld=rng.gamma(0.5, 0.02, size=tokens),
        same_top=rng.random(tokens) < 0.9,
        identical=rng.random(tokens) < 0.1,
    )


def test_figures_are_those_of_their_definitions_over_all_tokens() -> None:
    parts = [scores(1, 300), scores(2, 500)]
    both = TokenScores.join(parts)
    found = measure("all", parts, [np.arange(0, 300, 50), np.arange(0, 500, 50)])
    assert (found.tokens, found.blocks) == (800, 16)
    assert found.perplexity.value == pytest.approx(math.exp(both.loss.mean()))
    compared = found.comparison
    assert compared.full_perplexity.value == pytest.approx(math.exp(both.full_loss.mean()))
    assert compared.ratio.value == pytest.approx(found.perplexity.value / compared.full_perplexity.value)
    assert compared.kld.value == pytest.approx(both.kld.mean())
    ordered = np.sort(both.kld)
    assert (compared.kld_median, compared.kld_max) == (pytest.approx((ordered[399] + ordered[400]) / 2), ordered[-1])
    for share, quantile in ((0.9, compared.kld_p90), (0.99, compared.kld_p99), (0.999, compared.kld_p999)):
        assert np.mean(ordered <= quantile) == pytest.approx(share, abs=1 / 800)
    assert compared.same_top.value == pytest.approx(both.same_top.mean())
    assert found.accuracy.value == pytest.approx(both.correct.mean())
    assert compared.full_accuracy.value == pytest.approx(both.full_correct.mean())
    change = np.exp(-both.loss) - np.exp(-both.full_loss)
    assert compared.mean_delta_p.value == pytest.approx(change.mean())
    assert compared.rms_delta_p.value == pytest.approx(math.sqrt((change**2).mean()))
    assert compared.identical == both.identical.sum()


def test_the_ratio_of_paired_losses_is_known_better_than_either_perplexity() -> None:
    found = measure("x", [scores(1, 640)], [np.arange(0, 640, 32)])

    def width(estimate):
        return math.log(estimate.high / estimate.low)

    assert width(found.comparison.ratio) < width(found.perplexity) / 3
    assert found.comparison.ratio.low < found.comparison.ratio.value < found.comparison.ratio.high


def test_intervals_stay_where_values_can_be() -> None:
    one = TokenScores(
        loss=np.ones(40),
        correct=np.ones(40, dtype=bool),
        full_loss=np.ones(40),
        full_correct=np.zeros(40, dtype=bool),
        kld=np.array([0.0] * 39 + [1.0]),
        same_top=np.array([True] * 39 + [False]),
        identical=np.zeros(40, dtype=bool),
    )
    compared = measure("x", [one], [np.arange(0, 40, 10)]).comparison
    assert compared.kld.low == 0.0
    assert compared.same_top.high == 1.0
    assert compared.full_accuracy.low == 0.0
    assert (compared.rms_delta_p.low, compared.rms_delta_p.high) == (0.0, 0.0)


def test_without_a_full_model_there_is_nothing_to_compare() -> None:
    assert (
        measure("x", [TokenScores(loss=np.ones(4), correct=np.ones(4, dtype=bool))], [np.array([0, 2])]).comparison
        is None
    )


def test_what_is_infinite_stays_infinite_and_is_valid_json() -> None:
    one = TokenScores(
        loss=np.array([1.0, np.inf, np.inf, 800.0]),
        correct=np.ones(4, dtype=bool),
        full_loss=np.array([1.0, np.inf, 2.0, 3.0]),
        full_correct=np.ones(4, dtype=bool),
        kld=np.array([0.0, 0.1, np.inf, np.inf]),
        same_top=np.ones(4, dtype=bool),
        identical=np.zeros(4, dtype=bool),
    )
    found = measure("x", [one], [np.array([0, 2])])
    assert found.perplexity.value == math.inf
    assert (found.comparison.ratio.value, found.comparison.kld.value) == (math.inf, math.inf)
    assert not any(
        math.isnan(value)
        for value in (found.comparison.kld_median, found.comparison.kld_p99, found.comparison.mean_delta_p.value)
    )
    facts = ModelFacts(name="m", kind="store", identity="00", experts=1, total_experts=2)
    result = Evaluation(
        model=facts,
        against=facts,
        context=4,
        stride=4,
        limit=None,
        missing="mask",
        experts_per_token=None,
        texts=(found,),
        total=found,
    )
    read = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert read["texts"][0]["perplexity"] == {"value": "inf", "low": None, "high": None}
    assert (read["schema_version"], read["level"]) == (1, 0.95)

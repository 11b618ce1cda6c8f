"""What a card says, and keeps of the card of the model."""

import dataclasses

import pytest

from coterie.evaluate import Estimate
from coterie.fitting.card import verdict_in_words, write_card
from coterie.fitting.commands import verdict_of


def with_difference(fit, low: float | None, high: float | None):
    """The same, had the difference that decides this interval."""
    rows = []
    for row in fit.evaluated.figures:
        if row.domain == fit.evaluated.decisive:
            value = 0.0 if low is None else (low + high) / 2
            beside = dataclasses.replace(row.beside, difference=Estimate(value=value, low=low, high=high))
            row = dataclasses.replace(row, beside=beside)
        rows.append(row)
    evaluated = dataclasses.replace(fit.evaluated, figures=tuple(rows))
    return dataclasses.replace(fit, evaluated=evaluated, verdict=verdict_of(evaluated))


@pytest.mark.parametrize(
    ("low", "high", "verdict", "said"),
    [
        (-0.2, -0.1, "gain", "Gain. KL divergence from the full model on all texts:"),
        (0.1, 0.2, "no gain", "No gain. KL"),
        (-0.1, 0.1, "open", "No gain is shown: the interval of the difference has 0 in it."),
        (None, None, "open", "No gain is shown: there is too little text for an interval."),
    ],
)
def test_a_gain_is_said_only_where_the_interval_leaves_no_other(fitted, low, high, verdict: str, said: str) -> None:
    found = with_difference(fitted.fit, low, high)
    assert found.verdict == verdict
    assert verdict_in_words(found).startswith(said)
    assert "for a uniform store of the same size" in verdict_in_words(found)


def test_metadata_of_the_models_card_stays_and_its_text_follows(fitted) -> None:
    original = "---\nlicense: apache-2.0\nbase_model:\n- some/base\ntags:\n- moe\n---\n\n# A model\n\nIts text.\n"
    card = write_card(fitted.fit, original, hub_id="some/model")
    head, _, rest = card.removeprefix("---\n").partition("\n---\n")
    assert head.splitlines() == [
        "license: apache-2.0",
        "tags:",
        "- moe",
        "base_model: some/model",
        "base_model_relation: quantized",
    ]
    assert rest.strip().startswith("# qwen3_moe")
    assert rest.rstrip().endswith("# A model\n\nIts text.")
    assert not write_card(fitted.fit, None).startswith("---")
    assert write_card(fitted.fit, "# Only text").endswith("# Only text\n")

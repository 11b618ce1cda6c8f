"""Salience in the report: tokens one by one, and experts that serve the salient ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from coterie.analysis import SalientTokens, markdown_page
from coterie.analysis.report.findings import Report
from coterie.analysis.report.salience import PARTS, SalienceOfWindows, salience, salience_figure
from coterie.spec import BankKey, ExpertsSelected

BANKS = {BankKey("text", layer, "mlp"): 8 for layer in range(2)}
WINDOWS, TOKENS, K = 8, 64, 2


@dataclass(frozen=True)
class Token:
    token_id: int | None
    surprise: float | None
    novelty: float
    arousal: float | None
    conflict: float
    salience: float


def read(favoured: set[int], prefix: int = 0, seed: int = 0) -> SalientTokens:
    """Windows of a text of which some experts are chosen by the salient tokens alone, if any are favoured."""
    rng = np.random.default_rng(seed)
    kept = SalienceOfWindows("text", {**BANKS, BankKey("vision", 0, "mlp"): 8})
    others = [expert for expert in range(8) if expert not in favoured]
    for _ in range(WINDOWS):
        high = rng.random(prefix + TOKENS) < 0.5
        for bank in BANKS:
            ids = np.stack(
                [rng.choice(sorted(favoured) if salient and favoured else others, K, replace=False) for salient in high]
            )
            kept.on_event(ExpertsSelected(step=0, bank=bank, expert_ids=ids, weights=np.full(ids.shape, 0.5)))
        tokens = [
            Token(place, None if place == 0 else 0.5, 0.25, 0.5, 0.75, 0.8 if one else 0.2)
            for place, one in enumerate(high)
        ]
        kept.end_window(tokens, prefix)
    return kept.result(lambda token: f"<{token}|")


def test_experts_of_salient_tokens_are_found():
    tokens = read({2, 5})
    answer = salience(tokens)
    assert answer.claims[0].holds
    assert answer.claims[0].value > 0.9
    assert answer.answer.startswith("Some experts serve more salient tokens than others")
    experts = answer.tables[2]
    assert {row[0] for row in experts.rows[:4]} == {"0:2", "0:5", "1:2", "1:5"}
    bank = next(iter(BANKS))
    factors = tokens.factor(bank)
    share = float(tokens.weighted[bank].sum() / tokens.used[bank].sum())
    assert factors[2] == pytest.approx(0.8 / share)
    # Weighted usage is usage times the factor, and sums to as much.
    used = tokens.used[bank].sum(axis=0)
    assert float((used * factors)[used > 0].sum()) == pytest.approx(used.sum())


def test_nothing_is_found_where_there_is_nothing():
    answer = salience(read(set()))
    assert not answer.claims[0].holds
    assert answer.answer.startswith("It is not shown")


def test_tokens_are_listed_with_their_parts():
    tokens = read({2, 5}, prefix=3)
    assert len(tokens.token_ids) == WINDOWS * TOKENS
    assert sum(rows.sum() for rows in tokens.used.values()) == 2 * WINDOWS * TOKENS * K
    answer = salience(tokens)
    most, middle, _ = answer.tables
    assert [row[-1] for row in most.rows] == ["0.80"] * 12
    # The window in the middle is the fourth; the prefix is no text.
    assert middle.rows[0][:4] == (str(3 * TOKENS), "3", "'<3|'", "0.50")
    assert most.columns == ("place", "id", "token", *PARTS)
    report = Report(
        model="m", model_class="M", identity="i", component="text", banks=2, experts=16, tokens=1, modalities={},
        domains={}, recorded=(), trial_tokens=512, answers=(answer,),
    )  # fmt: skip
    assert "| '&lt;3\\|' |" in markdown_page(report)
    labels = [label.get_text() for label in salience_figure(tokens).axes[0].get_yticklabels()]
    assert labels == list(PARTS)


def test_parts_that_are_not_known_are_left_open():
    tokens = read({1, 2})
    first = np.flatnonzero(tokens.token_ids == 0)
    assert np.isnan(tokens.parts["surprise"][first]).all()
    assert salience(tokens).tables[1].rows[0][3] == "–"


def test_without_a_text_nothing_is_measured():
    answer = salience(None)
    assert "`--text`" in answer.answer
    assert not answer.claims

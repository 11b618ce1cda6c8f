from pathlib import Path

import numpy as np
import pytest

from coterie.curves.choosing import ExpertRanking, kept_gate_mass
from coterie.curves.measuring import Task
from coterie.errors import UsageError
from coterie.extraction.keeping import Amount
from coterie.spec.opening import Opening


@pytest.fixture(scope="module")
def banks(readable: Path):
    task = Task(
        model=readable, against=readable, texts={}, opening=Opening(), context=None, stride=None, limit=None,
        work=Path(), reference=None,
    )  # fmt: skip
    return task.banks


@pytest.fixture(scope="module")
def usage(recorded: Path):
    from coterie.profiles import Usage

    return Usage.open(recorded)


def test_by_number_the_lowest_are_there(banks) -> None:
    ranking = ExpertRanking(banks, "id", None)
    assert set(ranking.take(Amount.parse("3"), "layer").values()) == {(0, 1, 2)}
    # Of the whole model, layers take turns.
    assert [len(ids) for ids in ranking.take(Amount.parse("7"), "model").values()] == [4, 3]
    assert (ranking.total, ranking.least) == (16, 4)


def test_by_frequency_those_are_there_that_were_chosen_most(banks, usage) -> None:
    for domain in (None, "code"):
        chosen = ExpertRanking(banks, "frequency", usage, domain).take(Amount.parse("50%"), "layer")
        for key, ids in chosen.items():
            counts = usage.banks[key].activations[usage.where(domain)].sum(axis=0)
            assert len(ids) == 4
            assert min(counts[list(ids)]) >= max(np.delete(counts, ids))


def test_of_the_whole_model_each_layer_has_what_a_token_uses_and_more_only_adds(banks, usage) -> None:
    ranking = ExpertRanking(banks, "ean", usage, "code")
    before: set = set()
    for count in range(ranking.least, ranking.total + 1):
        chosen = ranking.first(count)
        assert min(len(ids) for ids in chosen.values()) >= 2
        now = {(key, expert) for key, ids in chosen.items() for expert in ids}
        assert len(now) == count
        assert before < now
        before = now


def test_a_draw_is_the_same_each_time(banks) -> None:
    one, other = (ExpertRanking(banks, "random", None).take(Amount.parse("4"), "layer") for _ in range(2))
    assert one == other
    assert len(set(one.values())) == 2


def test_gate_weight_that_is_kept(banks, usage) -> None:
    everything = {key: tuple(range(8)) for key in banks}
    assert kept_gate_mass(usage, everything, None) == pytest.approx(1.0)
    chosen = dict.fromkeys(banks, (1, 5))
    rows = usage.where("code")
    by_hand = [
        usage.banks[key].gate_mass[rows][:, [1, 5]].sum() / usage.banks[key].gate_mass[rows].sum() for key in banks
    ]
    assert kept_gate_mass(usage, chosen, "code") == pytest.approx(np.mean(by_hand))


@pytest.mark.parametrize(
    ("amount", "scope", "message"),
    [
        ("1", "layer", "1 of the 8 experts of text/mlp-layer-000 are fewer than its tokens use, 2"),
        ("10%", "layer", "Ask for at least 2, or 25%"),
        ("3", "model", "3 of the 16 experts of the model"),
        ("9", "layer", "9 experts of text/mlp-layer-000 are asked for, which has 8"),
        ("17", "model", "17 experts of the model"),
    ],
)
def test_too_few_and_too_many(banks, amount: str, scope, message: str) -> None:
    with pytest.raises(UsageError) as found:
        ExpertRanking(banks, "id", None).take(Amount.parse(amount), scope)
    assert message in str(found.value)


def test_a_domain_that_was_not_recorded(banks, usage) -> None:
    with pytest.raises(UsageError, match=r"Unknown domain .cod.\. Did you mean 'code'"):
        ExpertRanking(banks, "ean", usage, "cod")

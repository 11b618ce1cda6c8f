"""What names and numbers of adapted experts mean, and which are refused."""

import pytest

from coterie.errors import UsageError
from coterie.spec import ADAPTATION_PRESETS, AdaptiveExperts


@pytest.mark.parametrize(
    ("name", "k", "counts"),
    [
        ("wake", 8, (2, 8)),
        ("focus", 8, (4, 8)),
        ("crisis", 8, (6, 8)),
        ("wake", 6, (2, 6)),
        ("wake", 4, (1, 4)),
        ("crisis", 2, (2, 2)),
        ("wake", 1, (1, 1)),
    ],
)
def test_presets_are_shares_of_the_models_k(name, k, counts):
    settings = AdaptiveExperts.of(name, k)
    assert (settings.counts(k), settings.by_salience) == (counts, True)


def test_a_gate_needs_no_salience():
    settings = AdaptiveExperts.of("gate:0.25", 8)
    assert (settings.min_gate, settings.counts(8), settings.by_salience) == (0.25, (8, 8), False)
    assert AdaptiveExperts.of(settings, 3) is settings


def test_numbers_are_bounded_by_what_is_chosen():
    assert AdaptiveExperts(k_min=3, k_max=6).counts(8) == (3, 6)
    assert AdaptiveExperts(k_min=3, k_max=6).counts(4) == (3, 4)
    assert AdaptiveExperts(k_min=3).counts(2) == (2, 2)
    assert AdaptiveExperts(k_max=2).counts(8) == (2, 2)
    assert not AdaptiveExperts(k_min=2, k_max=2).by_salience


@pytest.mark.parametrize("name", ["wakeful", "gate:", "gate:much", "gate:1.5", "gate:nan", "gate:-1", ""])
def test_other_names_are_refused(name):
    with pytest.raises(UsageError):
        AdaptiveExperts.of(name, 8)


def test_the_nearest_name_is_told():
    with pytest.raises(UsageError, match="Did you mean 'crisis'"):
        AdaptiveExperts.of("crises", 8)
    assert set(ADAPTATION_PRESETS) == {"wake", "focus", "crisis"}


@pytest.mark.parametrize("numbers", [{"k_min": 0}, {"k_max": 0}, {"k_min": 3, "k_max": 2}, {"min_gate": 1.01}])
def test_other_numbers_are_refused(numbers):
    with pytest.raises(UsageError):
        AdaptiveExperts(**numbers)

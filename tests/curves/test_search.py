from types import SimpleNamespace

import pytest

from coterie.curves.points import SmallestSet
from coterie.curves.search import find_smallest, shared_experts
from coterie.errors import UsageError
from coterie.evaluate import Estimate
from coterie.spec import BankKey


def measured(kld, tried: list[int]):
    def measure(count: int):
        tried.append(count)
        return SimpleNamespace(kld=Estimate(value=kld(count), low=None, high=None))

    return measure


@pytest.mark.parametrize(("bound", "smallest"), [(0.5, 50), (0.9, 10), (0.955, 5), (0.001, 100), (5.0, 4)])
def test_the_smallest_number_is_found_by_few_measurements(bound: float, smallest: int) -> None:
    tried: list[int] = []
    ranking = SimpleNamespace(total=100, least=4)
    count, point, evaluations = find_smallest(ranking, bound, measured(lambda n: 1 - n / 100, tried))
    assert count == smallest
    assert point.kld.value == 1 - count / 100
    assert evaluations == len(tried) == len(set(tried)) <= 8


def test_of_a_large_model_it_is_known_to_a_part_of_all_experts() -> None:
    tried: list[int] = []
    ranking = SimpleNamespace(total=6144, least=400)
    count, _, _ = find_smallest(ranking, 0.4, measured(lambda n: 1 - n / 6144, tried))
    assert 0 <= count - 0.6 * 6144 <= 24
    assert len(tried) <= 9


def test_a_bound_that_all_experts_do_not_reach() -> None:
    ranking = SimpleNamespace(total=16, least=4)
    with pytest.raises(UsageError, match=r"divergence is 0\.02000 already, more than 0\.01"):
        find_smallest(ranking, 0.01, measured(lambda n: 0.02, []))


def test_what_sets_share() -> None:
    def found(domain: str, bound: float, first: tuple[int, ...], second: tuple[int, ...]) -> SmallestSet:
        return SmallestSet(
            domain=domain, bound=bound, by="ean", missing="mask", experts=len(first) + len(second), total_experts=12,
            kld=Estimate(value=0.0, low=None, high=None), expert_nbytes=1, gate_mass=1.0,
            chosen={"text/mlp-layer-000": first, "text/mlp-layer-001": second}, evaluations=1,
        )  # fmt: skip

    banks = {BankKey("text", 0, "mlp"): 6, BankKey("text", 1, "mlp"): 6}
    sets = [
        found("a", 0.01, (0, 1, 2), (0, 1)),
        found("b", 0.01, (0, 2, 3), (0, 5)),
        found("c", 0.01, (0, 3), (0,)),
        found("a", 0.1, (0,), (0,)),
    ]
    (shared,) = shared_experts(sets, banks)
    assert (shared.bound, shared.domains, shared.core, shared.several) == (0.01, ("a", "b", "c"), 2, 2)
    assert (shared.only, shared.none) == ({"a": 2, "b": 1, "c": 0}, 5)
    assert shared.layers == {"text/mlp-layer-000": 1, "text/mlp-layer-001": 1}
    assert shared.core + shared.several + sum(shared.only.values()) + shared.none == 12

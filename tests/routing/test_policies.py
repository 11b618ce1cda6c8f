import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import ExpertMissingError
from coterie.routing import absent_pairs, drop, error, nearest, substitution_table
from coterie.spec import BankKey

E = 8
BANK = BankKey("thinker", 3, "mlp")


def mask(*present: int) -> torch.Tensor:
    available = torch.zeros(E, dtype=torch.bool)
    available[list(present)] = True
    return available


def routing(tokens: int, k: int, *, seed: int = 0, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(tokens, E, generator=generator).argsort(-1)[:, :k]
    weights = torch.rand(tokens, k, generator=generator).softmax(-1).to(dtype)
    return ids, weights


def contribution(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weight that each token gives to each expert, in float64 [T, E + 1]; column E is the sentinel's."""
    return torch.zeros(ids.shape[0], E + 1, dtype=torch.float64).scatter_add_(1, ids, weights.double())


@pytest.mark.parametrize("policy", ["drop", "nearest", "error"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_absent_returns_the_same_objects(policy, dtype):
    ids = torch.tensor([[0, 1], [2, 3]])
    weights = torch.tensor([[0.7, 0.3], [0.6, 0.4]], dtype=dtype)
    available = mask(0, 1, 2, 3)
    routed = {
        "drop": lambda: drop(ids, weights, available),
        "nearest": lambda: nearest(ids, weights, available, torch.arange(E)),
        "error": lambda: error(ids, weights, available, bank=BANK),
    }[policy]()
    assert routed.ids is ids
    assert routed.weights is weights
    assert routed.absent == 0


def test_drop_scales_what_is_left():
    ids = torch.tensor([[0, 1, 2], [0, 4, 5], [4, 5, 6]])
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.25, 0.25], [0.4, 0.3, 0.3]])
    routed = drop(ids, weights, mask(0, 1, 4))
    assert routed.ids.tolist() == [[0, 1, E], [0, 4, E], [4, E, E]]
    torch.testing.assert_close(
        routed.weights, torch.tensor([[0.625, 0.375, 0.0], [2 / 3, 1 / 3, 0.0], [1.0, 0.0, 0.0]])
    )
    assert routed.absent == 4
    assert ids[0, 2] == 2, "the caller's tensors are not written to"


def test_drop_with_none_left_leaves_everything_out():
    routed = drop(torch.tensor([[5, 6], [0, 1]]), torch.tensor([[0.5, 0.5], [0.9, 0.1]]), mask(0, 1))
    assert routed.ids.tolist() == [[E, E], [0, 1]]
    assert routed.weights.tolist() == [[0.0, 0.0], pytest.approx([0.9, 0.1])]


def test_drop_with_only_zero_weights_left_leaves_everything_out():
    routed = drop(torch.tensor([[5, 0]]), torch.tensor([[1.0, 0.0]]), mask(0))
    assert routed.ids.tolist() == [[E, E]]
    assert routed.weights.tolist() == [[0.0, 0.0]]


def test_sentinels_are_not_absent():
    ids = torch.tensor([[0, E]])
    assert not absent_pairs(ids, mask(0)).any()
    assert drop(ids, torch.tensor([[1.0, 0.0]]), mask(0)).ids is ids
    routed = nearest(torch.tensor([[1, E]]), torch.tensor([[1.0, 0.0]]), mask(0), torch.zeros(E, dtype=torch.long))
    assert routed.ids.tolist() == [[0, E]]
    assert routed.absent == 1


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, E),
    present=st.sets(st.integers(0, E - 1)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_drop_keeps_the_sum_and_the_proportions(seed, k, present, dtype):
    ids, weights = routing(5, k, seed=seed, dtype=dtype)
    available = mask(*present)
    routed = drop(ids, weights, available)
    assert routed.absent == sum(e not in present for row in ids.tolist() for e in row)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for row in range(5):
        kept = [slot for slot in range(k) if int(ids[row, slot]) in present]
        assert [s for s in range(k) if int(routed.ids[row, s]) != E] == kept
        if len(kept) == k:
            assert torch.equal(routed.weights[row], weights[row])
        elif kept:
            assert float(routed.weights[row].double().sum()) == pytest.approx(
                float(weights[row].double().sum()), rel=tolerance
            )
            scale = float(weights[row].double().sum() / weights[row, kept].double().sum())
            torch.testing.assert_close(
                routed.weights[row, kept].double(), weights[row, kept].double() * scale, rtol=tolerance, atol=0
            )


def test_error_names_layer_and_experts():
    with pytest.raises(ExpertMissingError, match=r"Layer 3 of the thinker.*expert\(s\) 5, 7,") as caught:
        error(torch.tensor([[7, 0], [5, 7]]), torch.ones(2, 2), mask(0), bank=BANK)
    assert caught.value.experts == (5, 7)
    assert caught.value.absent == 3
    assert pickle.loads(pickle.dumps(caught.value)).bank == BANK


def test_table_takes_the_highest_cosine_not_the_highest_product():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0], [0.9, 0.1]])
    available = torch.tensor([True, True, True, False])
    assert substitution_table(rows, available).tolist() == [0, 1, 2, 0]
    available = torch.tensor([False, True, True, False])
    assert substitution_table(rows, available).tolist() == [2, 1, 2, 2]


def test_table_breaks_ties_by_lowest_id_and_survives_zero_rows():
    rows = torch.tensor([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0], [4.0, 4.0]], dtype=torch.bfloat16)
    assert substitution_table(rows, torch.tensor([False, True, False, True])).tolist() == [1, 1, 1, 3]


def test_table_without_any_available_expert_is_all_sentinels():
    assert substitution_table(torch.ones(4, 2), torch.zeros(4, dtype=torch.bool)).tolist() == [4] * 4


@pytest.mark.parametrize("rows", [torch.ones(3, 2), torch.ones(4), torch.ones(4, 2, device="meta")])
def test_table_refuses_rows_that_do_not_fit(rows):
    with pytest.raises(ValueError, match=r"router|Router"):
        substitution_table(rows, torch.ones(4, dtype=torch.bool))


def test_nearest_merges_duplicates_into_the_first_slot():
    table = torch.tensor([0, 0, 2, 0, 4, 4, 6, 7])
    ids = torch.tensor([[1, 0, 3, 2], [6, 7, 4, 2], [5, 1, 2, 6]])
    weights = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 3)
    routed = nearest(ids, weights, mask(0, 2, 4, 6, 7), table)
    assert routed.ids.tolist() == [[0, E, E, 2], [6, 7, 4, 2], [4, 0, 2, 6]]
    torch.testing.assert_close(
        routed.weights, torch.tensor([[0.9, 0.0, 0.0, 0.1], [0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]])
    )
    assert routed.absent == 4


def test_nearest_without_any_available_expert_leaves_everything_out():
    none = mask()
    routed = nearest(*routing(3, 2), none, substitution_table(torch.randn(E, 4), none))
    assert (routed.ids == E).all()
    assert (routed.weights == 0).all()
    assert routed.absent == 6


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, E),
    present=st.sets(st.integers(0, E - 1), min_size=1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_nearest_adds_the_contributions(seed, k, present, dtype):
    ids, weights = routing(6, k, seed=seed, dtype=dtype)
    available = mask(*present)
    table = substitution_table(torch.randn(E, 5, generator=torch.Generator().manual_seed(seed)), available)
    routed = nearest(ids, weights, available, table)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(
        contribution(routed.ids, routed.weights)[:, :E],
        contribution(table[ids], weights)[:, :E],
        rtol=tolerance,
        atol=1e-7,
    )
    for before, after, weight_before, weight_after in zip(ids, routed.ids, weights, routed.weights, strict=True):
        served = [e for e in after.tolist() if e != E]
        assert len(served) == len(set(served))
        assert set(served) <= present
        if all(e in present for e in before.tolist()):
            assert torch.equal(before, after)
            assert torch.equal(weight_before, weight_after)

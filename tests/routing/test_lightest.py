"""Which choices are light, and what the others weigh once they are left out."""

import pytest
import torch

from coterie.routing import leave_out, light_choices

E = 8


def routing(tokens: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(tokens, E, generator=generator).argsort(-1)[:, :k]
    return ids, torch.rand(tokens, k, generator=generator)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_the_heaviest_stay(k):
    ids, weights = routing(30, k)
    most = torch.arange(30) % (k + 1)
    light = light_choices(ids, weights, none=E, most=most)
    for row, count, marked in zip(weights.tolist(), most.tolist(), light.tolist(), strict=True):
        kept = [weight for weight, gone in zip(row, marked, strict=True) if not gone]
        assert sorted(kept, reverse=True) == sorted(row, reverse=True)[:count]


def test_of_equal_weights_the_first_stay():
    ids, weights = torch.tensor([[3, 1, 2, 0]]), torch.full((1, 4), 0.25)
    assert light_choices(ids, weights, none=E, most=torch.tensor([2])).tolist() == [[False, False, True, True]]


def test_a_share_of_the_highest_weight():
    ids, weights = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[0.5, 0.1, 0.4], [0.3, 0.3, 0.31]])
    assert light_choices(ids, weights, none=E, min_gate=0.5).tolist() == [[False, True, False], [False] * 3]
    assert light_choices(ids, weights, none=E, min_gate=1.0).tolist() == [[False, True, True], [True, True, False]]
    assert not light_choices(ids, weights, none=E).any()


def test_slots_without_an_expert_do_not_count():
    ids, weights = torch.tensor([[E, 1, 2, E + 1]]), torch.tensor([[9.0, -0.2, 0.1, 9.0]])
    assert light_choices(ids, weights, none=E, most=torch.tensor([1])).tolist() == [[False, True, False, False]]
    assert light_choices(ids, weights, none=E, min_gate=0.1).tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_others_take_over_the_weight(dtype):
    ids, weights = routing(20, 4)
    weights = weights.to(dtype)
    light = light_choices(ids, weights, none=E, most=torch.arange(20) % 4 + 1)
    left_ids, left_weights = leave_out(ids, weights, light, E)
    assert torch.equal(left_ids, ids.masked_fill(light, E))
    assert not left_weights[light].any()
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(left_weights.float().sum(-1), weights.float().sum(-1), **tolerance)
    untouched = ~light.any(-1)
    assert torch.equal(left_weights[untouched], weights[untouched])
    ratio = (left_weights / weights).float()
    for row, marked in zip(ratio, light, strict=True):
        torch.testing.assert_close(row[~marked], row[~marked][:1].expand(int((~marked).sum())), **tolerance)

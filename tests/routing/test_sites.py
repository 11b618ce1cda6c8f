"""Blocks that route in a method of their own, as DBRX does."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from coterie.errors import UnsupportedError
from coterie.routing import adapt_routing, routing_support

E, H, K = 8, 16, 3


def dbrx() -> nn.Module:
    from transformers import DbrxConfig
    from transformers.models.dbrx.modeling_dbrx import DbrxFFN

    config = DbrxConfig(d_model=H, ffn_config={"moe_num_experts": E, "moe_top_k": K, "ffn_hidden_size": 8})
    torch.manual_seed(0)
    block = DbrxFFN(config).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return block


def logits() -> torch.Tensor:
    return torch.randn(20, E, generator=torch.Generator().manual_seed(1))


def test_support():
    support = routing_support(dbrx().to("meta"))
    assert (support.router_class, support.family) == ("DbrxFFN", "softmax, top-k, renormalised")
    assert support.mask
    assert support.experts_per_token


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmasked_is_stock(dtype):
    block = dbrx()
    expected = block.route_tokens_to_experts(logits().to(dtype))
    adapt_routing(block, available=torch.ones(E, dtype=torch.bool))
    assert all(map(torch.equal, block.route_tokens_to_experts(logits().to(dtype)), expected))


@pytest.mark.parametrize("present", [[0, 2, 3, 6], [1, 5], [4], []])
def test_masked_selection_equals_brute_force(present):
    block = dbrx()
    untouched = dbrx().route_tokens_to_experts
    adapt_routing(block, available=torch.tensor([e in present for e in range(E)]))
    weights, ids = copy.deepcopy(block).route_tokens_to_experts(logits())
    for token, row in enumerate(logits().double()):
        best = sorted(present, key=lambda e: -float(row[e]))[:K]
        assert ids[token].tolist() == best + [E] * (K - len(best))
        assert_close(weights[token, : len(best)].double(), row[best].softmax(-1), rtol=1e-4, atol=1e-7)
        assert not weights[token, len(best) :].any()
    assert untouched(logits())[1].max() == E - 1, "the class is as it was"


@pytest.mark.parametrize("k", [1, 5])
def test_experts_per_token(k):
    block, stock = dbrx(), dbrx()
    stock.top_k = k
    adapt_routing(block, experts_per_token=k)
    assert all(map(torch.equal, block.route_tokens_to_experts(logits()), stock.route_tokens_to_experts(logits())))


def test_a_block_without_a_router_is_refused():
    with pytest.raises(UnsupportedError, match="no router"):
        adapt_routing(nn.Linear(2, 2))

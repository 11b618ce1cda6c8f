"""The expert arithmetic gives the bits of transformers' own eager forward, at any size, dtype and order of arrival."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from coterie.hf.experts import own_forward
from coterie.kernels import Accumulator, TokenKernel, group_by_expert, swiglu_rows, token_kernel
from coterie.kernels.token_kernel import by_batch, by_columns, by_linear, by_vector, exact_products

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = st.integers(1, 96)


def experts(
    width: int, inner: int, count: int, dtype: torch.dtype, act: str = "silu", seed: int = 0
) -> Qwen3MoeExperts:
    """transformers' own experts module with random weights."""
    config = Qwen3MoeConfig(hidden_size=width, moe_intermediate_size=inner, num_experts=count, hidden_act=act)
    module = Qwen3MoeExperts(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def one_token(
    module: Qwen3MoeExperts, top_k: int, weights_dtype: torch.dtype, chosen: int | None = None, seed: int = 1
):
    """What the eager forward and the token kernel make of one token with ``chosen`` (else K) experts."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, module.hidden_dim, generator=generator).to(module.down_proj.dtype)
    count = chosen or top_k
    ids = torch.randperm(module.num_experts, generator=generator)[:count]
    weights = torch.rand(1, count, generator=generator).to(weights_dtype)
    expected = own_forward(module)(module, hidden, ids[None], weights)
    shapes = tuple(module.gate_up_proj.shape[1:]), tuple(module.down_proj.shape[1:])
    kernel = TokenKernel(*shapes, module.down_proj.dtype)
    order = ids.argsort()
    gate_ups = [module.gate_up_proj[e].clone() for e in ids[order]]
    downs = [module.down_proj[e].clone() for e in ids[order]]
    return kernel(hidden, gate_ups, downs, weights[:, order].mT, module.act_fn, range(len(order))), expected


@settings(max_examples=60)
@given(SIZES, SIZES, st.integers(1, 8), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 1000))
def test_one_token_at_any_size(width, inner, top_k, dtype, wide_weights, seed):
    module = experts(width, inner, 8, dtype, seed=seed)
    got, expected = one_token(module, top_k, torch.float32 if wide_weights else dtype, seed=seed)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@settings(max_examples=20)
@given(SIZES, SIZES, st.integers(1, 7), st.sampled_from(DTYPES))
def test_one_token_with_fewer_experts_than_usual(width, inner, chosen, dtype):
    got, expected = one_token(experts(width, inner, 8, dtype), 8, dtype, chosen)
    assert torch.equal(got, expected)


LARGE = [
    pytest.param(256, 96, 4, id="bundled"),
    pytest.param(2048, 768, 8, id="thinker of 30B"),
    pytest.param(1024, 384, 6, id="talker of 30B"),
    pytest.param(65, 4099, 8, id="all together above the grain"),
    pytest.param(2, 32769, 2, id="each above the grain"),
    pytest.param(8, 8192, 4, id="all together at the grain"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "inner", "top_k"), LARGE)
def test_one_token_of_a_large_model(width, inner, top_k, dtype):
    got, expected = one_token(experts(width, inner, top_k, dtype), top_k, dtype)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "inner", "top_k"), LARGE)
def test_one_token_on_two_threads(width, inner, top_k, dtype, two_threads):
    got, expected = one_token(experts(width, inner, top_k, dtype), top_k, dtype)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_pytorch_tanh", "relu2"])
def test_every_activation(act):
    got, expected = one_token(experts(40, 24, 8, torch.bfloat16, act), 3, torch.bfloat16)
    assert torch.equal(got, expected)


# --- many tokens ------------------------------------------------------------------------------------------------------


def many_tokens(module: Qwen3MoeExperts, tokens: int, top_k: int, seed: int, arrival: random.Random):
    """The eager forward, and rows computed per expert and added in a random order of arrival."""
    generator = torch.Generator().manual_seed(seed)
    dtype = module.down_proj.dtype
    hidden = torch.randn(tokens, module.hidden_dim, generator=generator).to(dtype)
    ids = torch.rand(tokens, module.num_experts, generator=generator).topk(top_k).indices
    weights = torch.rand(tokens, top_k, generator=generator).to(dtype)
    expected = own_forward(module)(module, hidden, ids, weights)
    grouping = group_by_expert(ids, module.num_experts)
    outputs = Accumulator(hidden, grouping.experts)
    for i in arrival.sample(range(len(grouping.experts)), len(grouping.experts)):
        expert, rows = grouping.experts[i], grouping.tokens[i]
        out = swiglu_rows(hidden[rows], module.gate_up_proj[expert], module.down_proj[expert], module.act_fn)
        outputs.add(expert, rows, out * weights[rows, grouping.slots[i], None])
    return outputs.result_TD, expected


@settings(max_examples=60)
@given(SIZES, SIZES, st.integers(1, 40), st.integers(1, 6), st.sampled_from(DTYPES), st.randoms(use_true_random=False))
def test_many_tokens_in_any_order_of_arrival(width, inner, tokens, top_k, dtype, arrival):
    got, expected = many_tokens(experts(width, inner, 8, dtype), tokens, top_k, 2, arrival)
    assert torch.equal(got, expected)


def test_many_tokens_on_two_threads(two_threads):
    got, expected = many_tokens(experts(256, 96, 32, torch.bfloat16), 200, 4, 3, random.Random(0))
    assert torch.equal(got, expected)


def test_the_order_of_adding_matters():
    """Else the tests of arrival would show nothing: in bf16 another order gives other bits."""
    rows = torch.randn(6, 1, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    token = torch.zeros(1, dtype=torch.int64)

    def total(order: list[int]) -> torch.Tensor:
        outputs = Accumulator(torch.zeros(1, 64, dtype=torch.bfloat16), order)
        for expert in order:
            outputs.add(expert, token, rows[expert])
        return outputs.result_TD

    assert not torch.equal(total([0, 1, 2, 3, 4, 5]), total([5, 4, 3, 2, 1, 0]))


def test_an_expert_that_is_not_next_waits():
    like = torch.zeros(2, 3)
    outputs = Accumulator(like, [1, 4])
    outputs.add(4, torch.tensor([0]), torch.ones(1, 3))
    assert torch.equal(outputs.result_TD, like)
    outputs.add(1, torch.tensor([1]), torch.full((1, 3), 2.0))
    assert outputs.result_TD.tolist() == [[1.0] * 3, [2.0] * 3]
    assert torch.equal(like, torch.zeros(2, 3)), "the input is not written to"


# --- choosing routines ------------------------------------------------------------------------------------------------


WAYS = (by_columns, by_batch, by_vector)


def replace_ways(monkeypatch, way):
    """Makes every way but ``by_linear`` compute something else."""
    for one in WAYS:
        monkeypatch.setattr(token_kernel, one.__name__, way)


@pytest.mark.parametrize("way", [by_linear, *WAYS])
@pytest.mark.parametrize("shared", [True, False])
def test_every_way_computes_the_products(way, shared):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(5, 7, generator=generator) for _ in range(3)]
    rows = torch.randn(1 if shared else 3, 7, generator=generator)
    expected = torch.cat([linear(rows[[0 if shared else i]], w) for i, w in enumerate(weights)])
    torch.testing.assert_close(way(rows, weights), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(192, 256), (64, 33), (1, 1)])
def test_a_way_that_rounds_otherwise_is_not_taken(shape, dtype, monkeypatch):
    def off(rows: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        result = by_linear(rows, weights)
        result[-1, -1] = torch.nextafter(result[-1, -1], torch.tensor(torch.inf, dtype=result.dtype))
        return result

    replace_ways(monkeypatch, off)
    assert exact_products(shape, 3, dtype, shared_row=True) is by_linear


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(34, 88), (1, 40), (192, 256), (8, 9), (300, 5)])
def test_adding_in_another_order_is_noticed(shape, dtype, monkeypatch):
    """The rounding of a 16-bit result hides most differences; the data must show them nevertheless."""

    def backwards(rows: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        pairs = zip(rows.expand(len(weights), -1), weights, strict=True)
        return torch.stack([sum_in_order((weight * row).flip(-1)) for row, weight in pairs])

    def sum_in_order(products: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(products.shape[0])
        for column in products.float().unbind(-1):
            total += column
        return total.to(products.dtype)

    replace_ways(monkeypatch, backwards)
    assert exact_products(shape, 2, dtype, shared_row=True) is by_linear


def test_products_are_chosen_once_for_each_setting(two_threads, monkeypatch):
    """How a product rounds can depend on the number of threads and on the precision of float32."""
    chosen = []

    def choose(*arguments, **options):
        chosen.append((torch.get_num_threads(), torch.get_float32_matmul_precision(), arguments[1]))
        return by_linear

    monkeypatch.setattr("coterie.kernels.token_kernel.exact_products", choose)
    kernel = TokenKernel((8, 6), (6, 4), torch.float32)

    def run(top_k):
        gate_ups, downs = [torch.ones(8, 6)] * top_k, [torch.ones(6, 4)] * top_k
        kernel(torch.ones(1, 6), gate_ups, downs, torch.ones(top_k, 1), torch.nn.functional.silu, range(top_k))

    for _ in range(2):
        for top_k in (2, 3):
            run(top_k)
    torch.set_num_threads(1)
    run(2)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    run(2)
    expected = [(2, "highest", 2), (2, "highest", 3), (1, "highest", 2), (1, "medium", 2)]
    assert chosen == [one for one in expected for _ in range(2)]

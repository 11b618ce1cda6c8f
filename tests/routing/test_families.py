"""The contract of the router adapters: bit-equal to stock when nothing is masked, brute force when something is."""

import copy
import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from coterie.errors import UnsupportedError, UsageError
from coterie.routing import FAMILIES, adapt_router, require_family, router_family, router_rows

E, H, K = 12, 16, 4
CLASSES = {
    "FlexOlmoTopKRouter": "flex_olmo",
    "MellumTopKRouter": "mellum",
    "MiniMaxTopKRouter": "minimax",
    "MixtralTopKRouter": "mixtral",
    "OlmoeTopKRouter": "olmoe",
    "Qwen2MoeTopKRouter": "qwen2_moe",
    "Qwen3MoeTopKRouter": "qwen3_moe",
    "Qwen3NextTopKRouter": "qwen3_next",
    "Qwen3OmniMoeTalkerTextTopKRouter": "qwen3_omni_moe",
    "Qwen3OmniMoeTextTopKRouter": "qwen3_omni_moe",
    "Qwen3OmniMoeThinkerTextTopKRouter": "qwen3_omni_moe",
    "Qwen3VLMoeTextTopKRouter": "qwen3_vl_moe",
    "Qwen3_5MoeTopKRouter": "qwen3_5_moe",
}
OPTIONAL_NORM = next(f for f in FAMILIES if f.adapter.__name__ == "OptionalNormRouter").class_names
CASES = [(name, norm) for name in sorted(CLASSES) for norm in ((True, False) if name in OPTIONAL_NORM else (True,))]


def router_class(module: str, name: str) -> type[nn.Module]:
    """A router class of transformers, or a skip where this release does not have it."""
    try:
        return getattr(importlib.import_module(f"transformers.models.{module}.modeling_{module}"), name)
    except (ImportError, AttributeError):
        pytest.skip(f"this transformers has no {name}")


def make_router(name: str, norm: bool, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    config = SimpleNamespace(
        num_experts_per_tok=K, num_experts=E, num_local_experts=E, hidden_size=H, norm_topk_prob=norm
    )
    with torch.device(device):
        router = router_class(CLASSES[name], name)(config)
    if device != "meta":
        nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(1))
    return router.to(dtype)


def inputs(dtype: torch.dtype = torch.float32, tokens: int = 40) -> torch.Tensor:
    return torch.randn(tokens, H, generator=torch.Generator().manual_seed(2)).to(dtype)


def only(*present: int) -> torch.Tensor:
    return torch.tensor([e in present for e in range(E)])


def renormalises(name: str, norm: bool) -> bool:
    return norm or name not in OPTIONAL_NORM


def test_every_registered_class_is_in_the_contract():
    assert set(CLASSES) == set().union(*(family.class_names for family in FAMILIES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_unmasked_output_is_bit_equal_to_stock(name, norm, dtype):
    router = make_router(name, norm, dtype=dtype)
    for shape in ((40, H), (2, 20, H)):
        hidden = inputs(dtype).reshape(shape)
        for got, expected in zip(adapt_router(router)(hidden), router(hidden), strict=True):
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 3, 7, E])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_experts_per_token_equals_a_stock_router_with_that_top_k(name, norm, k, dtype):
    router = make_router(name, norm, dtype=dtype)
    stock = copy.deepcopy(router)
    stock.top_k = k
    for got, expected in zip(
        adapt_router(router, experts_per_token=k)(inputs(dtype)), stock(inputs(dtype)), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("present", [(0, 2, 3, 5, 7, 8, 11), (1, 4, 6, 9), (3, 10), (5,), ()])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_masked_selection_equals_brute_force(name, norm, present):
    router = make_router(name, norm)
    hidden = inputs()
    with torch.no_grad():
        logits, weights, ids = adapt_router(router, available=only(*present))(hidden)

    assert torch.equal(logits, router(hidden)[0])
    assert ids.shape == weights.shape == (40, K)
    probabilities = logits.double().softmax(-1)
    for token in range(40):
        best = sorted(present, key=lambda e: -float(probabilities[token, e]))[:K]
        assert ids[token].tolist() == best + [E] * (K - len(best))
        expected = probabilities[token, best]
        if best and renormalises(name, norm):
            expected = expected / expected.sum()
        assert_close(weights[token, : len(best)].double(), expected, rtol=1e-5, atol=1e-9)
        assert (weights[token, len(best) :] == 0).all()


@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if renormalises(*case)])
def test_an_absent_expert_that_had_all_probability_leaves_no_nan(name, norm):
    router = make_router(name, norm)
    nn.init.zeros_(router.weight)
    router.weight.data[:, 0] = torch.linspace(0, 11, E)
    router.weight.data[0, 0] = 500.0
    _, weights, ids = adapt_router(router, available=only(1, 2, 3, 4, 5))(torch.eye(1, H))
    assert ids.tolist() == [[5, 4, 3, 2]]
    assert_close(weights, torch.tensor([[5.0, 4.0, 3.0, 2.0]]).softmax(-1), rtol=1e-5, atol=0)


def test_mask_and_experts_per_token_together():
    router = make_router("Qwen3MoeTopKRouter", True)
    _, weights, ids = adapt_router(router, available=only(0, 1, 2), experts_per_token=2)(inputs())
    assert ids.shape == (40, 2)
    assert (ids < 3).all()
    assert_close(weights.sum(-1), torch.ones(40))


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_adapter_is_the_router_to_everyone_else(name):
    router = make_router(name, True)
    router.register_forward_hook(lambda *_: None)
    adapter = adapt_router(router, available=only(0))
    assert isinstance(adapter, router_class(CLASSES[name], name))
    assert adapter.weight is router.weight
    assert list(adapter.state_dict()) == list(router.state_dict())
    assert not list(adapter.buffers())
    assert len(adapter._forward_hooks) == 1
    assert router_family(adapter) is router_family(router)
    assert type(adapter) is type(adapt_router(router))
    adapter.weight = nn.Parameter(torch.zeros(E, H))
    assert router.weight is not adapter.weight, "loading one must not write into the other"


def test_adapting_an_adapter_starts_from_the_stock_router():
    router = make_router("Qwen3MoeTopKRouter", True)
    again = adapt_router(adapt_router(router, available=only(0)), available=only(1, 2))
    assert set(again(inputs())[2].unique().tolist()) == {1, 2, E}
    assert type(again).__mro__.count(type(router)) == 1


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_router_adapted_on_meta_can_be_loaded(name):
    stock = make_router(name, True)
    adapter = adapt_router(make_router(name, True, device="meta"), available=only(2, 3, 4, 5, 6))
    adapter.to_empty(device="cpu")  # what a loader does to whatever is still on meta
    adapter.load_state_dict(stock.state_dict())
    expected = adapt_router(stock, available=only(2, 3, 4, 5, 6))(inputs())
    assert all(torch.equal(a, b) for a, b in zip(adapter(inputs()), expected, strict=True))


def test_adapter_can_be_copied():
    adapter = adapt_router(make_router("Qwen3MoeTopKRouter", True), available=only(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(copy.deepcopy(adapter)(inputs()), adapter(inputs()), strict=True))


def test_the_callers_mask_may_change_afterwards():
    available = only(2, 3)
    adapter = adapt_router(make_router("Qwen3MoeTopKRouter", True), available=available)
    available.fill_(True)
    assert set(adapter(inputs())[2].unique().tolist()) == {2, 3, E}


@pytest.mark.parametrize("k", [0, -1, E + 1])
def test_experts_per_token_out_of_range(k):
    with pytest.raises(UsageError, match=f"between 1 and {E}"):
        adapt_router(make_router("MixtralTopKRouter", True), experts_per_token=k)


def test_mask_of_the_wrong_size():
    with pytest.raises(UsageError, match=rf"bool \[{E}\]"):
        adapt_router(make_router("MixtralTopKRouter", True), available=torch.ones(E + 1, dtype=torch.bool))


def test_other_routers_are_refused_by_name():
    class SigmoidTopkRouter(nn.Module):
        pass

    assert router_family(SigmoidTopkRouter()) is None
    for ask in (
        lambda: adapt_router(SigmoidTopkRouter(), purpose="missing='mask'"),
        lambda: require_family(SigmoidTopkRouter(), purpose="missing='mask'"),
    ):
        with pytest.raises(UnsupportedError, match=r"missing='mask' .*SigmoidTopkRouter.*'drop' .*MixtralTopKRouter"):
            ask()
    with pytest.raises(UnsupportedError, match="SigmoidTopkRouter"):
        router_rows(SigmoidTopkRouter())


def test_router_rows_are_the_weight():
    router = make_router("OlmoeTopKRouter", True)
    assert router_rows(router) is router.weight
    assert router_rows(adapt_router(router)) is router.weight

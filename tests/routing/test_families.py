"""How families are told apart, and how adapters behave as modules."""

import copy

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn

from coterie.errors import UnsupportedError, UsageError
from coterie.routing import adapt_router, require_family, router_family, router_rows, routing_support
from coterie.routing.anatomy import anatomy_of
from coterie.routing.rehearsal import Rehearsal
from routing.routers import block_of, inputs, route, router_of

E, K = 8, 2


def only(*present: int) -> torch.Tensor:
    return torch.tensor([e in present for e in range(E)])


@pytest.mark.parametrize(
    ("name", "family", "adapter"),
    [
        ("OlmoeTopKRouter", "softmax, top-k", "OptionalNormRouter"),
        ("Qwen3OmniMoeThinkerTextTopKRouter", "softmax, top-k, renormalised", "OptionalNormRouter"),
        ("Qwen3VLMoeTextTopKRouter", "softmax, top-k, renormalised", "AlwaysNormRouter"),
        ("MixtralTopKRouter", "softmax, top-k, renormalised", "MixtralRouter"),
        ("GptOssTopKRouter", "logits, top-k, softmax", "OwnForwardRouter"),
        ("DeepseekV3TopkRouter", "sigmoid + bias in the best groups, top-k, renormalised", "OwnForwardRouter"),
        ("DeepseekV2TopkRouter", "softmax in the best groups, top-k", "OwnForwardRouter"),
        ("MiniMaxM2TopKRouter", "sigmoid + bias, top-k, renormalised", "OwnForwardRouter"),
        ("DeepseekV4TopKRouter", "square root of softplus + bias, top-k, renormalised", "OwnForwardRouter"),
        ("Kolibri1TopKRouter", "logits + bias, top-k, sigmoid", "OwnForwardRouter"),
        ("LongcatFlashTopkRouter", "softmax + bias, top-k", "OwnForwardRouter"),
        ("PhimoeTopKRouter", "sparse mixer", "SparseMixerRouter"),
        ("SwitchTransformersTop1Router", "softmax, best expert with room", "CapacityRouter"),
    ],
)
def test_families(name, family, adapter):
    router = router_of(name)
    found = require_family(router, purpose="mask")
    assert (found.name, found.adapter.__name__) == (family, adapter)
    assert router_family(adapt_router(router)) == found
    assert router_family(router.to("meta")) == found


class Changed(nn.Module):
    """What a later release could make of a router."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.top_k, self.num_experts, self.hidden_dim, self.norm_topk_prob = how, K, E, 4, False
        self.weight = nn.Parameter(torch.randn(E, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, hidden_states):
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        logits = nn.functional.linear(hidden_states, self.weight)
        probabilities = nn.functional.softmax(logits, dtype=torch.float, dim=-1)
        if self.how == "scaled":
            probabilities = probabilities * 3
        weights, ids = torch.topk(probabilities, self.top_k, dim=-1)
        if self.how == "twice":
            weights, ids = torch.topk(probabilities.roll(1, -1), self.top_k, dim=-1)
        if self.how == "moved":
            ids = (ids + 1) % E
        if self.how == "sorted":
            ids = probabilities.argsort(dim=-1, descending=True)[:, : self.top_k]
        return logits, weights.to(logits.dtype), ids


def test_a_changed_class_is_not_computed_by_the_old_adapter():
    assert require_family(Changed("not"), purpose="mask").adapter.__name__ == "OptionalNormRouter"
    changed = Changed("scaled")
    assert require_family(changed, purpose="mask").adapter.__name__ == "OwnForwardRouter"
    arguments = inputs(changed)
    stock, masked = route(changed, arguments), route(adapt_router(changed, available=only(1, 2, 5)), arguments)
    probabilities = stock.logits.softmax(-1) * 3
    assert set(masked.ids.unique().tolist()) == {1, 2, 5}
    assert torch.equal(masked.weights, probabilities.gather(1, masked.ids))


@pytest.mark.parametrize(
    ("how", "reason"),
    [("twice", "several top-k calls"), ("moved", "other ids"), ("sorted", "other ids")],
)
def test_a_class_that_chooses_in_another_way_is_refused(how, reason):
    with pytest.raises(UnsupportedError, match=reason):
        adapt_router(Changed(how), available=only(3, 4))


def test_a_rehearsal_leaves_the_router_alone():
    router = router_of("DeepseekV3TopkRouter")
    calls = []
    router.register_forward_hook(lambda *_: calls.append(1))
    before = {name: value.clone() for name, value in router.state_dict().items()}
    anatomy = anatomy_of(Rehearsal(router, "forward").steps())
    assert (anatomy.width, anatomy.top_k, anatomy.groups, anatomy.topk_calls) == (8, router.top_k, router.num_group, 3)
    assert not calls
    assert all(torch.equal(before[name], value) for name, value in router.state_dict().items())


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.8"), reason="the block routes by itself there")
def test_support_of_a_block():
    block = block_of("DeepseekV3TopkRouter").to("meta")
    support = routing_support(block)
    assert support.family == "sigmoid + bias in the best groups, top-k, renormalised"
    assert support.router_class == "DeepseekV3TopkRouter"
    assert support.mask
    assert support.experts_per_token
    assert support.nearest
    assert support.reason is None


def test_support_of_blocks_that_have_none():
    support = routing_support(nn.Linear(2, 2))
    assert not support.mask
    assert not support.nearest
    assert support.reason == "has no router that is known"
    block = nn.Module()
    block.gate = router_of("NllbMoeTop2Router")
    support = routing_support(block)
    assert (support.router_class, support.mask, support.nearest) == ("NllbMoeTop2Router", False, True)
    assert "top-k" in str(support.reason)


@pytest.mark.parametrize("name", ["Qwen3MoeTopKRouter", "DeepseekV3TopkRouter", "SwitchTransformersTop1Router"])
def test_adapter_is_the_router_to_everyone_else(name):
    router = router_of(name)
    router.register_forward_hook(lambda *_: None)
    adapter = adapt_router(router, available=only(0))
    assert isinstance(adapter, type(router))
    assert list(adapter.state_dict()) == list(router.state_dict())
    assert all(a is b for a, b in zip(adapter.parameters(), router.parameters(), strict=True))
    assert len(adapter._forward_hooks) == 1
    assert type(adapter) is type(adapt_router(router))
    if "weight" in router._parameters:
        adapter.weight = nn.Parameter(torch.zeros_like(router.weight))
        assert router.weight is not adapter.weight, "loading one must not write into the other"


@pytest.mark.parametrize("name", ["Qwen3MoeTopKRouter", "DeepseekV3TopkRouter"])
def test_adapter_can_be_copied_and_the_mask_may_change_afterwards(name):
    router = router_of(name)
    available = only(2, 3)
    adapter = adapt_router(router, available=available)
    available.fill_(True)
    got = route(adapter, inputs(router))
    assert set(got.ids.unique().tolist()) <= {2, 3, E}
    assert torch.equal(route(copy.deepcopy(adapter), inputs(router)).weights, got.weights)


@pytest.mark.parametrize("k", [0, -1, E + 1])
@pytest.mark.parametrize("name", ["MixtralTopKRouter", "GptOssTopKRouter"])
def test_experts_per_token_out_of_range(name, k):
    with pytest.raises(UsageError, match=f"between 1 and {E}"):
        adapt_router(router_of(name), experts_per_token=k)


@pytest.mark.parametrize("name", ["MixtralTopKRouter", "GptOssTopKRouter"])
def test_mask_of_the_wrong_size(name):
    with pytest.raises(UsageError, match=rf"bool \[{E}\]"):
        adapt_router(router_of(name), available=torch.ones(E + 1, dtype=torch.bool))


def test_other_modules_are_refused_by_name():
    class SigmoidTopkRouter(nn.Module):
        pass

    assert router_family(SigmoidTopkRouter()) is None
    with pytest.raises(UnsupportedError, match=r"missing='mask' .*SigmoidTopkRouter.*'drop' "):
        adapt_router(SigmoidTopkRouter(), purpose="missing='mask'")
    with pytest.raises(UnsupportedError, match="SigmoidTopkRouter, which has no row for each expert"):
        router_rows(SigmoidTopkRouter())


@pytest.mark.parametrize("name", ["OlmoeTopKRouter", "LongcatFlashTopkRouter", "HunYuanMoEV1Gate", "ZayaRouter"])
def test_router_rows_are_those_that_give_the_scores(name):
    router = router_of(name)
    rows = router_rows(router, E)
    assert rows.shape[0] == E
    assert any(rows.data_ptr() == p.data_ptr() for p in router.parameters())
    assert torch.equal(rows, router_rows(adapt_router(router), E))

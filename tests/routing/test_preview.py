"""A preview says what the router is going to choose, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.errors import UnsupportedError
from coterie.routing import adapt_routing, find_router, preview_of, routing_support
from routing.routers import CLASSES, block_of, inputs, route, width_of


def chosen(block: nn.Module, arguments: dict[str, torch.Tensor]) -> list[set[int]]:
    """What the block's router chooses, token by token."""
    if hasattr(type(block), "route_tokens_to_experts"):
        pytest.skip("in this transformers the block routes by itself")
    router = find_router(block).module
    ids = route(router, arguments).ids
    return [set(row) - {width_of(router)} for row in ids.tolist()]


def previewed(block: nn.Module, arguments: dict[str, torch.Tensor]) -> list[set[int]] | None:
    preview = preview_of(block)
    if preview is None:
        return None
    with torch.inference_mode():
        ids = preview(*arguments.values())
    assert ids is not None
    return [set(row) for row in ids.reshape(-1, ids.shape[-1]).tolist()]


def assert_as_chosen(block: nn.Module, arguments: dict[str, torch.Tensor]) -> None:
    before = {name: value.clone() for name, value in block.state_dict().items()}
    expected = chosen(block, arguments)
    assert previewed(block, arguments) == expected
    single = {n: v[..., :1, :] if n == "hidden_states" else v for n, v in arguments.items()}
    assert previewed(block, single) == expected[:1]
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


FEW = ("Qwen3MoeTopKRouter", "MixtralTopKRouter", "DeepseekV3TopkRouter", "GptOssTopKRouter", "AfmoeTokenChoiceRouter")


@pytest.mark.parametrize("name", FEW)
def test_it_is_what_the_router_chooses(name):
    block = block_of(name)
    assert_as_chosen(block, inputs(find_router(block).module))


@pytest.mark.matrix
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_family_that_can_be_masked_can_be_asked_ahead(name):
    block = block_of(name)
    arguments = inputs(find_router(block).module)
    if not routing_support(block).mask:
        assert preview_of(block) is None
    elif name == "PhimoeTopKRouter":  # which chooses one expert after the other: the best by logits may differ
        assert all(len(a & b) for a, b in zip(previewed(block, arguments), chosen(block, arguments), strict=True))
    else:
        assert_as_chosen(block, arguments)


@pytest.mark.parametrize("name", ["Qwen3MoeTopKRouter", "MixtralTopKRouter", "GptOssTopKRouter"])
@pytest.mark.parametrize("present", [[0, 2, 3, 6], [1, 5], []])
def test_absent_experts_are_not_predicted(name, present):
    block = block_of(name)
    arguments = inputs(find_router(block).module)
    adapt_routing(block, available=torch.tensor([e in present for e in range(8)]))
    if present:
        assert_as_chosen(block, arguments)
    else:
        assert preview_of(block) is None


def test_another_number_of_experts_per_token():
    block = block_of("Qwen3MoeTopKRouter")
    adapt_routing(block, experts_per_token=5)
    assert_as_chosen(block, inputs(find_router(block).module))


def test_a_block_that_routes_by_itself():
    from transformers import DbrxConfig
    from transformers.models.dbrx.modeling_dbrx import DbrxFFN

    block = DbrxFFN(DbrxConfig(d_model=16, ffn_config={"moe_num_experts": 8, "moe_top_k": 3, "ffn_hidden_size": 8}))
    block.eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    hidden = torch.randn(5, block.router.hidden_size)
    with torch.no_grad():
        _, expected = block.route_tokens_to_experts(block.router(hidden))
        assert preview_of(block)(hidden).tolist() == expected.tolist()
        adapt_routing(block, available=torch.arange(8) > 2)
        _, expected = block.route_tokens_to_experts(block.router(hidden))
        assert preview_of(block)(hidden).tolist() == expected.tolist()


def test_a_router_in_training_is_not_asked():
    block = block_of("MixtralTopKRouter")
    preview = preview_of(block)
    hidden = inputs(find_router(block).module)["hidden_states"]
    assert preview(hidden) is not None
    find_router(block).module.train()
    assert preview(hidden) is None


def test_what_cannot_be_asked():
    assert preview_of(nn.Linear(2, 2)) is None
    block = nn.ModuleDict({"gate": nn.Linear(16, 8)})
    with pytest.raises(UnsupportedError):
        adapt_routing(block, experts_per_token=2)
    assert preview_of(block) is None

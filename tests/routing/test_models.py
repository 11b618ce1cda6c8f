"""Adapted routers inside whole models of transformers."""

import copy

import pytest
import torch
from torch import nn

from coterie.errors import UnsupportedError
from coterie.routing import adapt_router, drop, find_router, router_family

IDS = torch.arange(3, 35).reshape(2, 16)


def moe_blocks(model: nn.Module) -> list[nn.Module]:
    return [model.get_submodule(n.rpartition(".")[0]) for n, _ in model.named_modules() if n.endswith(".experts")]


def adapt(model: nn.Module, **options: object) -> None:
    for block in moe_blocks(model):
        slot = find_router(block)
        setattr(block, slot.attribute, adapt_router(slot.module, **options))


def require_sentinels(model: nn.Module) -> None:
    """Older releases refuse the id E in the eager forward; there only Coterie's own experts functions skip it."""
    experts = moe_blocks(model)[0].experts
    try:
        with torch.no_grad():
            experts(torch.zeros(1, 32), torch.tensor([[0, 8]]), torch.tensor([[1.0, 0.0]]))
    except RuntimeError:
        pytest.skip("the eager experts of this transformers do not skip sentinels")


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_masked_gives_identical_logits(model, dtype):
    model.to(dtype)
    expected = logits(model)
    names = list(model.state_dict())
    adapt(model, available=torch.ones(8, dtype=torch.bool))
    assert torch.equal(logits(model), expected)
    assert list(model.state_dict()) == names


def test_every_layer_has_a_known_router(model):
    blocks = moe_blocks(model)
    assert len(blocks) == 2
    assert all(router_family(find_router(block).module) is not None for block in blocks)


def test_router_logits_are_still_recorded(model):
    untouched = copy.deepcopy(model)  # recording installs hooks on the routers that it finds by class
    adapt(model, available=torch.ones(8, dtype=torch.bool))
    with torch.no_grad():
        stock = untouched(input_ids=IDS, output_router_logits=True).router_logits
        if stock is None:
            pytest.skip("this transformers does not record the router logits of this model")
        recorded = model(input_ids=IDS, output_router_logits=True).router_logits
    assert len(recorded) == 2
    assert all(torch.equal(a, b) for a, b in zip(recorded, stock, strict=True))


@pytest.mark.parametrize("present", [5, 2, 0])
def test_masked_experts_are_never_computed(model, present):
    require_sentinels(model)
    for block in moe_blocks(model):
        for name, parameter in block.experts.named_parameters():
            assert parameter.shape[0] == 8, name
            parameter.data[present:] = float("nan")
    assert logits(model).isnan().any()
    adapt(model, available=torch.arange(8) < present)
    assert not logits(model).isnan().any()


def test_no_expert_available_equals_experts_that_add_nothing(model):
    require_sentinels(model)
    adapt(model, available=torch.zeros(8, dtype=torch.bool))
    masked = logits(model)
    for block in moe_blocks(model):
        for parameter in block.experts.parameters():
            nn.init.zeros_(parameter)
    adapt(model, available=torch.ones(8, dtype=torch.bool))
    assert torch.equal(logits(model), masked)


def test_dropped_slots_are_skipped_by_the_stock_experts(model):
    require_sentinels(model)
    experts = moe_blocks(model)[0].experts
    hidden = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[0, 1, 2], [5, 6, 7], [0, 6, 1], [2, 3, 4], [7, 0, 5], [1, 2, 3]])
    weights = torch.full((6, 3), 1 / 3)
    available = torch.arange(8) < 5
    for parameter in experts.parameters():
        parameter.data[5:] = float("nan")
    routed = drop(ids, weights, available)
    with torch.no_grad():
        out = experts(hidden, routed.ids, routed.weights)
    assert routed.absent == 6
    assert not out.isnan().any()
    assert (out[1] == 0).all(), "no expert left: the experts add nothing"


def test_blocks_without_a_router_are_refused():
    with pytest.raises(UnsupportedError, match=r"Sequential has no router.*children are 0"):
        find_router(nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(UnsupportedError, match="two candidates"):
        find_router(nn.ModuleDict({"gate": nn.Linear(1, 1), "router": nn.Linear(1, 1)}))

"""Whatever lies in memory how, a linear layer without gradients rounds as one with them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from coterie.integration.linear import round_as_stock
from coterie.kernels import StockLinear
from coterie.passes.forwards import Covering, install

INPUTS = {
    "rows": lambda x: x[0],
    "whole": lambda x: x,
    "last position": lambda x: x[:, -1:],
    "some positions": lambda x: x[:, 3:7],
    "transposed": lambda x: x.transpose(0, 1),
    "every other": lambda x: x[:, ::2],
    "features of wider rows": lambda x: torch.cat([x, x], -1)[..., :64],
    "channels first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "four dimensions": lambda x: x.view(3, 4, 6, 64).transpose(1, 2),
    "one position, channels first": lambda x: x[:, 0, :, None].transpose(1, 2),
    "one vector": lambda x: x[0, 0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("form", INPUTS)
def test_it_rounds_as_a_layer_that_wants_gradients(form, bias, dtype):
    torch.manual_seed(0)
    stock = nn.Linear(64, 96, bias=bias, dtype=dtype)
    ours = copy.deepcopy(stock).requires_grad_(False)
    round_as_stock(ours)
    with torch.no_grad():
        for _ in range(4):
            x = INPUTS[form](torch.randn(3, 24, 64, dtype=dtype))
            expected = stock(x)
            assert torch.equal(ours(x), expected)
            assert ours(x).shape == expected.shape


def test_a_watched_layer_rounds_so_too():
    class Watch(Covering):
        def __call__(self, *inputs):
            return self.beneath(*inputs)

    torch.manual_seed(0)
    stock = nn.Linear(64, 96, bias=False)
    ours = copy.deepcopy(stock).requires_grad_(False)
    install(ours, "prediction", Watch())
    round_as_stock(ours)
    with torch.no_grad():
        for x in [torch.randn(3, 24, 64)[:, -1:] for _ in range(20)]:
            assert torch.equal(ours(x), stock(x))


def test_without_it_they_differ():
    """The reason for all this; if torch rounds alike one day, the layer can go."""
    torch.manual_seed(0)
    stock = nn.Linear(64, 96, bias=False)
    plain = copy.deepcopy(stock).requires_grad_(False)
    with torch.no_grad():
        inputs = [torch.randn(3, 24, 64)[:, -1:] for _ in range(20)]
        assert not all(torch.equal(stock(x), plain(x)) for x in inputs)


def test_only_plain_layers_change_their_class():
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict(
        {"plain": nn.Linear(2, 2), "own": Own(2, 2), "hooked": nn.Linear(2, 2), "norm": nn.LayerNorm(2)}
    )
    model["hooked"].forward = lambda x: x
    names = list(model.state_dict())
    round_as_stock(model)
    assert {name: type(module) for name, module in model.items()} == {
        "plain": StockLinear,
        "own": Own,
        "hooked": nn.Linear,
        "norm": nn.LayerNorm,
    }
    assert list(model.state_dict()) == names
    assert type(nn.Linear(2, 2)) is nn.Linear


def test_a_copy_has_weights_of_its_own():
    layer = nn.Linear(2, 2)
    round_as_stock(layer)
    twin = copy.deepcopy(layer)
    nn.init.zeros_(twin.weight)
    x = torch.ones(2, 3, 2).transpose(0, 1)
    assert not torch.equal(layer(x), twin(x))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_parametrised_layer_computes_with_what_the_parametrisation_gives(name):
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    stock = nn.Linear(4, 3)
    ours = copy.deepcopy(stock).requires_grad_(False)
    round_as_stock(ours)
    for layer in (stock, ours):
        nn.utils.parametrize.register_parametrization(layer, name, Doubled())
    x = torch.randn(2, 5, 4)
    with torch.no_grad():
        assert torch.equal(ours(x), stock(x))

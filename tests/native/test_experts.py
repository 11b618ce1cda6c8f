"""The experts of a layer: as exact as the eager forward at the least, and the same bits however they come."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

from coterie.native import ACTIVATIONS, ExpertsKernel, Library, Located

from .matrices import Matrix, activations, random_matrix

ACT = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Layer(NamedTuple):
    """Experts, and a kernel for them."""

    kernel: ExpertsKernel
    activation: str
    gate_ups: list[Matrix]
    downs: list[Matrix]

    def located(self, experts: list[int]) -> list[Located]:
        return [self.kernel.locate(e, self.gate_ups[e][1:], self.downs[e][1:]) for e in experts]

    def __call__(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        going = self.kernel.begin(x, index, weights)
        return going.finish(self.located(going.experts))


def make(
    native: Library, scheme: str = "int4", activation: str = "silu", experts: int = 6, width: int = 192, inner: int = 96
) -> Layer:
    kernel = ExpertsKernel(native, scheme=scheme, activation=activation, num_experts=experts, width=width, inner=inner)
    gate_ups = [random_matrix(scheme, 2 * inner, width, seed=e) for e in range(experts)]
    downs = [random_matrix(scheme, width, inner, seed=100 + e) for e in range(experts)]
    return Layer(kernel, activation, gate_ups, downs)


def choices(tokens: int, top_k: int, experts: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(tokens, experts, generator=generator).topk(top_k).indices
    return index, torch.rand(tokens, top_k, generator=generator)


def by_formula(
    layer: Layer, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Every step in one dtype, sums in ascending order of experts."""
    out = torch.zeros(x.shape, dtype=dtype)
    for expert in range(len(layer.downs)):
        gate_up, down = (m.weights().to(dtype) for m in (layer.gate_ups[expert], layer.downs[expert]))
        for token, slot in (index == expert).nonzero().tolist():
            gate, up = F.linear(x[token].to(dtype), gate_up).chunk(2)
            row = F.linear(ACT[layer.activation](gate) * up, down)
            out[token] += row * weights[token, slot].to(dtype)
    return out


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_is_no_worse_than_that_of_bfloat16(native: Library, scheme: str, activation: str) -> None:
    layer = make(native, scheme, activation)
    for tokens in (1, 2, 5, 16):
        x = activations(tokens, 192)
        index, weights = choices(tokens, 3, 6)
        exact = by_formula(layer, x, index, weights, torch.float64)
        usual = by_formula(layer, x, index, weights, torch.bfloat16)
        got = layer(x, index, weights)
        assert got.dtype == torch.bfloat16
        assert (got - exact).norm() <= (usual - exact).norm()

"""The experts of a layer: as exact as the eager forward at the least, and the same bits however they come."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

from coterie.errors import UsageError
from coterie.native import ACTIVATIONS, SCHEMES, ExpertsKernel, Library, Located, PassMemory
from coterie.spec.encodings import NATIVE

from .matrices import Matrix, activations, random_matrix, with_threads

MIXED = "mixed"
"""Every usual scheme in one bank."""
GROUPS = "groups"
"""Schemes in one bank whose codes are packed alike, and whose groups and numbers are not."""
BANKS = {
    MIXED: (*SCHEMES, NATIVE),
    GROUPS: ("int4-g32", "int4", "int4-g128-sym-f16", "int8-g128-zero", "int4-g32-zp", "int8-g32", "int3-g128"),
}

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
        return [
            self.kernel.locate(e, *((m.scheme, m.fields) for m in (self.gate_ups[e], self.downs[e]))) for e in experts
        ]

    def __call__(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        going = self.kernel.begin(x, index, weights)
        return going.finish(self.located(going.experts))


def make(
    native: Library, scheme: str = "int4", activation: str = "silu", experts: int = 6, width: int = 192, inner: int = 96
) -> Layer:
    schemes = BANKS.get(scheme, (scheme,))
    kernel = ExpertsKernel(
        native, schemes=schemes, activation=activation, num_experts=experts, width=width, inner=inner
    )
    # No expert of a mixed bank has both matrices in one scheme.
    numbers = [(e, e + 3) for e in range(experts)]
    gate_ups = [random_matrix(schemes[a % len(schemes)], 2 * inner, width, seed=e) for e, (a, _) in enumerate(numbers)]
    downs = [random_matrix(schemes[b % len(schemes)], width, inner, seed=100 + e) for e, (_, b) in enumerate(numbers)]
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


@pytest.mark.parametrize("scheme", [*SCHEMES, MIXED])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_is_no_worse_than_that_of_bfloat16(native: Library, scheme: str, activation: str) -> None:
    layer = make(native, scheme, activation)
    for tokens in (1, 2, 5, 16, 70):
        x = activations(tokens, 192)
        index, weights = choices(tokens, 3, 6)
        exact = by_formula(layer, x, index, weights, torch.float64)
        usual = by_formula(layer, x, index, weights, torch.bfloat16)
        got = layer(x, index, weights)
        assert got.dtype == torch.bfloat16
        assert (got - exact).norm() <= (usual - exact).norm()


def test_matrices_packed_alike_with_other_groups(native: Library) -> None:
    layer = make(native, GROUPS, experts=7, width=256, inner=128)
    for tokens in (1, 3, 16, 70):
        x = activations(tokens, 256)
        index, weights = choices(tokens, 4, 7)
        exact = by_formula(layer, x, index, weights, torch.float64)
        usual = by_formula(layer, x, index, weights, torch.bfloat16)
        assert (layer(x, index, weights) - exact).norm() <= (usual - exact).norm()


def in_any_order(layer: Layer, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """Sums of experts that come at once, one by one, and before the end."""
    sums = [layer(x, index, weights)]
    going = layer.kernel.begin(x, index, weights)
    for expert in reversed(going.experts[1:]):
        going.compute(layer.located([expert]))
    sums.append(going.finish(layer.located(going.experts[:1])))
    going = layer.kernel.begin(x, index, weights)
    going.compute(layer.located(going.experts[::-1]))
    return [*sums, going.finish()]


@pytest.mark.parametrize("scheme", [*SCHEMES, MIXED, GROUPS])
def test_bits_depend_on_neither_threads_nor_order_nor_other_tokens(native: Library, scheme: str) -> None:
    layer = make(native, scheme, inner=160)
    layer.kernel.least_rows = 1000
    x = activations(13, 192)
    index, weights = choices(13, 3, 6)
    alone = torch.cat([layer(x[t : t + 1], index[t : t + 1], weights[t : t + 1]) for t in range(13)])
    for threads in (1, 2, 3):
        with_threads(threads, lambda: [torch.testing.assert_close(sums, alone, rtol=0, atol=0)
                                       for sums in in_any_order(layer, x, index, weights)])  # fmt: skip


@pytest.mark.parametrize("scheme", [*SCHEMES, MIXED])
@pytest.mark.parametrize("inner", [96, 160, 256])
def test_bits_with_many_tokens_depend_on_neither_threads_nor_order_nor_other_tokens(
    native: Library, scheme: str, inner: int
) -> None:
    layer = make(native, scheme, inner=inner)
    x = activations(120, 192)
    # All of the first experts have many tokens in both halves, the last one has two in all.
    index, weights = choices(120, 3, 5)
    index[[7, 90], 1] = 5
    halves = [layer(x[half], index[half], weights[half]) for half in (slice(0, 60), slice(60, 120))]
    whole = layer(x, index, weights)
    assert torch.equal(whole[:7], halves[0][:7])
    assert torch.equal(whole[91:], halves[1][31:])
    for threads in (1, 2, 3):
        with_threads(threads, lambda: [torch.testing.assert_close(sums, whole, rtol=0, atol=0)
                                       for sums in in_any_order(layer, x, index, weights)])  # fmt: skip


@pytest.mark.parametrize("scheme", [*SCHEMES, MIXED])
@pytest.mark.parametrize("width", [192, 64])
def test_norms_of_what_each_choice_adds(native: Library, scheme: str, width: int) -> None:
    """Of few tokens and of many, the same bits for any threads and any order of experts; what is left out stays."""
    layer = make(native, scheme, width=width)
    for tokens in (1, 3, 120):
        x = activations(tokens, width)
        index, weights = choices(tokens, 3, 6)
        index[-1, 1] = 6
        index[0, 2] = index[0, 0]  # an expert that stands in for another one
        plain = layer(x, index, weights)
        found: list[torch.Tensor] = []

        def measure(parts: int, x=x, index=index, weights=weights, plain=plain, found=found) -> None:
            norms = torch.full(index.shape, -1.0)
            going = layer.kernel.begin(x, index, weights)
            for expert in going.experts[parts:]:
                going.compute(layer.located([expert]))
            assert torch.equal(going.finish(layer.located(going.experts[:parts]), norms_TK=norms), plain)
            found.append(norms)

        for threads in (1, 2, 3):
            with_threads(threads, lambda: [measure(parts) for parts in (9, 1)])
        assert all(torch.equal(norms, found[0]) for norms in found)
        assert found[0][-1, 1] == -1
        alone = index.clone()
        for slot in range(3):
            alone.fill_(6)
            alone[:, slot] = index[:, slot]
            exact = by_formula(layer, x, alone, weights, torch.float64).norm(dim=-1)
            given = index[:, slot] < 6
            torch.testing.assert_close(found[0][given, slot], exact[given].float(), rtol=0.02, atol=0)


def test_an_expert_of_more_tokens_than_are_packed_at_a_time(native: Library) -> None:
    layer, x = make(native, experts=2), activations(700, 192)
    index = torch.zeros(700, 1, dtype=torch.int64)
    index[650:] = 1
    weights = torch.rand(700, 1)
    parts = [layer(x[part], index[part], weights[part]) for part in (slice(0, 400), slice(400, 700))]
    assert torch.equal(layer(x, index, weights), torch.cat(parts))


def test_ids_beyond_the_experts_are_left_out(native: Library) -> None:
    layer, x = make(native), activations(3, 192)
    index = torch.tensor([[6, 2, 7], [6, 6, 9], [4, 5, 2]])
    weights = torch.rand(3, 3)
    going = layer.kernel.begin(x, index, weights)
    assert going.experts == [2, 4, 5]
    out = going.finish(layer.located(going.experts))
    assert torch.equal(out[1], torch.zeros(192, dtype=torch.bfloat16))
    assert torch.equal(out[:1], layer(x[:1], index[:1, 1:2], weights[:1, 1:2]))


def test_the_same_expert_twice_counts_twice(native: Library) -> None:
    layer, x = make(native), activations(1, 192)
    twice = layer(x, torch.tensor([[3, 3]]), torch.tensor([[0.25, 0.25]]))
    assert torch.equal(twice, layer(x, torch.tensor([[3]]), torch.tensor([[0.5]])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gate_weights_of_any_dtype(native: Library, dtype: torch.dtype) -> None:
    layer, x = make(native), activations(2, 192)
    index, weights = choices(2, 3, 6)
    weights = weights.to(dtype)
    assert torch.equal(layer(x, index.int(), weights), layer(x, index, weights.float()))


def test_many_tokens_and_few_after_them(native: Library) -> None:
    layer = make(native, experts=40, width=64, inner=32)
    for tokens in (1, 300, 1, 3, 0):
        x = activations(tokens, 64)
        index, weights = choices(tokens, 4, 40)
        exact = by_formula(layer, x, index, weights, torch.float64)
        usual = by_formula(layer, x, index, weights, torch.bfloat16)
        assert (layer(x, index, weights) - exact).norm() <= (usual - exact).norm()


def test_layers_of_a_pass_take_their_memory_from_one_place(native: Library) -> None:
    layer, memory = make(native, experts=8, width=256, inner=64), PassMemory()
    expected, taken = [], []
    for tokens in (1500, 1400, 1500):
        given = (activations(tokens, 256, seed=tokens), *choices(tokens, 4, 8))
        expected.append(layer(*given))
        going = layer.kernel.begin(*given, memory)
        taken.append(going._intermediate.data_ptr())
        assert torch.equal(going.finish(layer.located(going.experts)), expected[-1])
    assert len(set(taken)) == 1
    assert torch.equal(expected[0], expected[2])
    few = layer.kernel.begin(activations(2, 256), *choices(2, 4, 8), memory)
    assert few._intermediate.data_ptr() != taken[0]
    assert few._intermediate.numel() < memory.take(1).numel()
    few.finish(layer.located(few.experts))


def test_threads_of_python_share_a_kernel(native: Library) -> None:
    layer = make(native)
    inputs = [(activations(t, 192), *choices(t, 3, 6, seed=t)) for t in (1, 2, 5, 9)]
    expected = [layer(*given) for given in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda given: [layer(*given) for _ in range(10)], inputs))
    for expect, results_of_one in zip(expected, results, strict=True):
        assert all(torch.equal(result, expect) for result in results_of_one)


def test_an_expert_that_was_not_chosen_is_refused_and_nothing_changes(native: Library) -> None:
    layer, x = make(native), activations(1, 192)
    index, weights = torch.tensor([[1, 4]]), torch.tensor([[0.5, 0.25]])
    going = layer.kernel.begin(x, index, weights)
    with pytest.raises(UsageError, match="Expert 3 was not chosen"):
        going.compute(layer.located([1, 3]))
    with pytest.raises(UsageError, match="1 of the experts"):
        going.finish(layer.located([4]))
    going.compute(layer.located([4]))
    with pytest.raises(UsageError, match="Expert 4 was not chosen, or has been computed"):
        going.compute(layer.located([4]))
    with pytest.raises(UsageError, match="3 experts were given"):
        going.compute(layer.located([1, 2, 3]))
    assert torch.equal(going.finish(layer.located([1])), layer(x, index, weights))
    with pytest.raises(UsageError, match="over"):
        going.finish()


def test_inputs_of_another_kind_are_refused(native: Library) -> None:
    kernel, x = make(native).kernel, activations(2, 192)
    index, weights = choices(2, 3, 6)
    for wrong in (
        (x.float(), index, weights),
        (x[:, :64], index, weights),
        (x, index[:1], weights),
        (x, index, weights[:, :2]),
        (x, index - 9, weights),
        (x.to("meta"), index, weights),
    ):
        with pytest.raises(UsageError):
            kernel.begin(*wrong)


def test_fields_of_another_shape_are_refused(native: Library) -> None:
    layer = make(native)
    with pytest.raises(UsageError, match="codes of int4"):
        layer.kernel.locate(0, *[(layer.downs[0].scheme, layer.downs[0].fields)] * 2)


@pytest.mark.parametrize("wrong", [{"scheme": "int7"}, {"activation": "swish"}, {"width": 100}, {"inner": 40}])
def test_what_is_not_served(native: Library, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="not served"):
        make(native, **wrong)  # type: ignore[arg-type]

"""One expert's product alone has the bits that it has among all experts."""

from __future__ import annotations

import pytest
import torch

from coterie.kernels import StackedProduct


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(64, 96), (48, 64), (256, 512), (1024, 2048)])
@pytest.mark.parametrize("rows", [1, 3, 24])
def test_as_in_the_batch(rows, shape, dtype, threads):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, rows, shape[0], generator=generator).to(dtype)
    weights = torch.randn(4, *shape, generator=generator).to(dtype)
    product, whole = StackedProduct(4), torch.bmm(inputs, weights)
    for expert in range(4):
        assert torch.equal(product(inputs[expert].clone(), weights[expert].clone()), whole[expert])


def test_a_way_is_chosen_for_each_number_of_threads():
    """A batch of one is spread over the threads, with another order of sums than in a batch of four."""
    product, before = StackedProduct(4), torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    inputs, weights = torch.randn(4, 1, 256, generator=generator), torch.randn(4, 256, 512, generator=generator)
    try:
        for threads in (2, 1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(product(inputs[0].clone(), weights[0].clone()), torch.bmm(inputs, weights)[0])
    finally:
        torch.set_num_threads(before)

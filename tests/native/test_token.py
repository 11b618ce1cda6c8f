"""One token's attention and router: torch's bits where they are promised, and no worse than torch where not."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention, softmax

from coterie.native import LEVELS, Library, attention_served, rotate, route, token_attention


def rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


@pytest.mark.parametrize(("heads", "width"), [(1, 2), (4, 64), (32, 128), (3, 80)])
def test_rotation_has_torch_s_bits(heads: int, width: int, native: Library) -> None:
    generator = torch.Generator().manual_seed(heads)
    x = torch.randn(1, heads, 1, width, generator=generator).bfloat16()
    angles = 6 * torch.rand(1, 1, width, generator=generator)
    cosine, sine = angles.cos().bfloat16(), angles.sin().bfloat16()
    want = rotated(x, cosine, sine)
    rotate(native, x, cosine, sine)
    assert torch.equal(x, want)


@pytest.mark.parametrize("length", [1, 2, 17, 300])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(8, 8, 16), (32, 4, 128), (6, 2, 256), (40, 1, 512)])
def test_attention_is_no_worse_than_torch_s(
    heads: int, kv_heads: int, width: int, length: int, native: Library
) -> None:
    generator = torch.Generator().manual_seed(length)
    query = 3 * torch.randn(1, heads, 1, width, generator=generator)
    # The cache may have room that is not used yet.
    keys, values = torch.randn(2, 1, kv_heads, length + 3, width, generator=generator).bfloat16()[:, :, :, :length]
    query = query.bfloat16()
    wide = [x.double().repeat_interleave(heads // kv_heads, dim=1) for x in (keys, values)]
    exact = scaled_dot_product_attention(query.double(), *wide, scale=0.1).flatten()
    torchs = scaled_dot_product_attention(query, *(x.bfloat16() for x in wide), scale=0.1).flatten()
    found = []
    for level in LEVELS[: native.level + 1]:
        got = token_attention(native.lowered(level), query, keys, values, 0.1)
        assert got.shape == (1, 1, heads * width)
        found.append(got.flatten())
    for got in found:
        assert (got - exact).norm() <= 1.2 * (torchs - exact).norm() + 1e-3 * exact.norm()


def test_scores_of_any_size_do_not_overflow(native: Library) -> None:
    query, keys = torch.full((1, 1, 1, 16), 200.0).bfloat16(), torch.full((1, 1, 5, 16), 200.0).bfloat16()
    keys[:, :, 2:] = -200
    values = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 16).bfloat16().contiguous()
    assert torch.equal(token_attention(native, query, keys, values, 1.0), torch.full((1, 1, 16), 0.5).bfloat16())


def test_attention_does_not_depend_on_threads(native: Library) -> None:
    query = torch.randn(1, 32, 1, 128).bfloat16()
    keys, values = torch.randn(2, 1, 4, 200, 128).bfloat16()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(token_attention(native, query, keys, values, 0.1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


def test_which_heads_are_served() -> None:
    assert attention_served(32, 4, 128)
    assert not attention_served(32, 4, 100)
    assert not attention_served(32, 4, 1024)
    assert not attention_served(6, 4, 64)
    assert attention_served(128, 1, 512)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("experts", "top_k", "width"), [(4, 1, 40), (32, 4, 96), (128, 8, 2048), (1024, 64, 64)])
def test_router_chooses_as_torch(experts: int, top_k: int, width: int, normalise: bool, native: Library) -> None:
    generator = torch.Generator().manual_seed(experts)
    tokens = torch.randn(5, width, generator=generator).bfloat16()
    weight = (torch.randn(experts, width, generator=generator) / width**0.5 * 3).bfloat16()
    for level in LEVELS[: native.level + 1]:
        logits, weights, ids = route(native.lowered(level), tokens, weight, top_k, normalise=normalise)
        torch.testing.assert_close(logits, linear(tokens, weight), rtol=0.01, atol=0.01)
        # From here on by its own logits: where scores are close, another rounding is another choice.
        shares = softmax(logits, dim=-1, dtype=torch.float32)
        best = shares.topk(top_k, dim=-1).values
        assert torch.equal(shares.gather(1, ids), best)
        assert all(len(set(row)) == top_k for row in ids.tolist())
        want = best / best.sum(-1, keepdim=True) if normalise else best
        torch.testing.assert_close(weights.float(), want, rtol=0.01, atol=1e-6)


def test_of_equal_shares_the_lower_id_goes_first(native: Library) -> None:
    _, weights, ids = route(native, torch.ones(1, 16).bfloat16(), torch.ones(6, 16).bfloat16(), 3, normalise=True)
    assert ids.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(weights.float(), torch.full((1, 3), 1 / 3), rtol=0.01, atol=0)


def test_what_is_not_a_number_chooses_no_expert_twice(native: Library) -> None:
    token, weight = torch.ones(1, 32).bfloat16(), torch.randn(12, 32).bfloat16()
    weight[[3, 7]] = torch.nan
    for rows in (token, torch.full_like(token, torch.nan)):
        _, weights, ids = route(native, rows, weight, 5, normalise=True)
        assert len(set(ids[0].tolist())) == 5
        assert weights.isnan().all()
    _, _, ids = route(native, token, weight, 5, normalise=True)
    assert ids[0, :2].tolist() == [3, 7]

"""A layer of one token in one call or two: the bits of its parts, one by one, whatever the level and the threads."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from coterie.errors import UsageError
from coterie.kernels.dense import RmsNorm
from coterie.native import (
    STAGES,
    KeyValueRoom,
    LayerBlock,
    LayerNorm,
    LayerParts,
    LayerRouter,
    Library,
    NativeLayer,
    PackedMatrix,
    Results,
    StageTimes,
    TokenStates,
    rotate,
    route,
    token_attention,
)

from .matrices import random_matrix

BF16 = torch.bfloat16


class Case(NamedTuple):
    width: int
    heads: int
    kv_heads: int
    head: int
    experts: int
    top_k: int
    schemes: tuple[str, str, str, str] = ("int4", "int4", "int4", "int4")
    inner: int = 0
    share: bool = False


SMALL = Case(64, 4, 2, 16, 8, 2)
WIDE = Case(2048, 32, 4, 128, 128, 8)
BLOCKS = [
    SMALL._replace(inner=96, share=True),
    Case(96, 6, 2, 48, 5, 5, ("int4", "int8", "int4", "int8"), 64, True),
    Case(192, 3, 3, 32, 0, 0, inner=320),
]
CASES = [SMALL, WIDE, Case(96, 6, 2, 48, 5, 5, ("int4", "int8", "int4", "int8")), Case(192, 3, 3, 32, 0, 0)]


def normal(*size: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.randn(*size, generator=torch.Generator().manual_seed(seed))).to(BF16)


def parts_of(case: Case, native: Library) -> LayerParts:
    mixed, kept = case.heads * case.head, case.kv_heads * case.head
    sizes = ((mixed, case.width), (kept, case.width), (kept, case.width), (case.width, mixed))
    matrices = [
        PackedMatrix(native, *random_matrix(scheme, *size, seed=seed))
        for seed, (scheme, size) in enumerate(zip(case.schemes, sizes, strict=True))
    ]
    widths = (case.width, case.head, case.head, case.width)
    norms = [LayerNorm(normal(width, seed=width + i), 8, i % 2, 1e-6) for i, width in enumerate(widths)]
    router = LayerRouter(normal(case.experts, case.width, seed=7), case.top_k, True) if case.experts else None
    return LayerParts(*norms, *matrices, case.head**-0.5, router, block_of(case, native) if case.inner else None)


def block_of(case: Case, native: Library) -> LayerBlock:
    sizes = ((case.inner, case.width), (case.inner, case.width), (case.width, case.inner))
    matrices = [random_matrix(case.schemes[i], *size, seed=20 + i) for i, size in enumerate(sizes)]
    share = normal(1, case.width, seed=30, scale=case.width**-0.5) if case.share else None
    return LayerBlock(*(PackedMatrix(native, *matrix) for matrix in matrices), "silu", share)


def added_by_block(case: Case, normed: torch.Tensor) -> torch.Tensor:
    """What a block gives, by its definition in float64."""
    sizes = ((case.inner, case.width), (case.inner, case.width), (case.width, case.inner))
    gate, up, down = (random_matrix(case.schemes[i], *size, seed=20 + i).weights() for i, size in enumerate(sizes))
    x = normed.double()
    added = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    share = normal(1, case.width, seed=30, scale=case.width**-0.5).double()
    return added * torch.sigmoid(x @ share.T) if case.share else added


class Token(NamedTuple):
    hidden: torch.Tensor
    cosine: torch.Tensor
    sine: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def token_of(case: Case, length: int, seed: int = 0) -> Token:
    """A token, and a cache of those before it that has room for more than this one."""
    angles = 6 * torch.rand(1, 1, case.head, generator=torch.Generator().manual_seed(seed))
    keys, values = normal(2, 1, case.kv_heads, length + 5, case.head, seed=seed + 1)
    return Token(normal(1, 1, case.width, seed=seed + 2), angles.cos().to(BF16), angles.sin().to(BF16), keys, values)


def extended(token: Token, key: torch.Tensor, value: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    for cache, new in ((token.keys, key), (token.values, value)):
        cache[:, :, length - 1 : length] = new
    return token.keys[:, :, :length], token.values[:, :, :length]


def one_by_one(parts: LayerParts, token: Token, length: int, native: Library) -> list[torch.Tensor]:
    def norm(part: LayerNorm, x: torch.Tensor) -> torch.Tensor:
        return RmsNorm(native, part.lanes, part.form, part.epsilon)(x, part.weight)

    head = parts.shape.head_width
    normed = norm(parts.before, token.hidden[0])
    query = norm(parts.of_query, parts.query(normed).view(-1, head))
    key = norm(parts.of_key, parts.key(normed).view(-1, head))
    value = parts.value(normed).view(1, -1, 1, head)
    rotate(native, query, token.cosine, token.sine)
    rotate(native, key, token.cosine, token.sine)
    key = key.view(1, -1, 1, head)
    mixed = token_attention(native, query, *extended(token, key, value, length), parts.scale)
    residual = token.hidden + parts.output(mixed[0])
    normed = norm(parts.after, residual[0])
    found = [key, value, residual, normed]
    if parts.router is not None:
        _, weights, ids = route(native, normed, parts.router.weight, parts.router.top_k, normalise=True)
        found += [ids, weights]
    return found


def passed(layer: NativeLayer, token: Token, length: int, times: StageTimes | None = None) -> list[torch.Tensor]:
    state = layer.take(token.hidden, token.cosine, token.sine, times)
    key, value, *_ = layer.begin(state)
    results = layer.finish(state, KeyValueRoom.of(*extended(token, key, value, length)))
    layer.release(state)
    return given(results)


def given(results: Results) -> list[torch.Tensor]:
    """All that a layer gives but what experts would add."""
    return [tensor for tensor in results[:-3] if tensor.numel()]


@pytest.mark.parametrize("length", [1, 2, 300])
@pytest.mark.parametrize("case", CASES)
def test_bits_are_those_of_the_parts(case: Case, length: int, native: Library) -> None:
    parts, token = parts_of(case, native), token_of(case, length)
    want = one_by_one(parts, token, length, native)
    got = passed(NativeLayer(native, parts, TokenStates()), token, length)
    assert len(got) == len(want)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(tensor.isfinite().all() for tensor in got)


@pytest.mark.parametrize("case", BLOCKS)
def test_a_block_beside_the_experts_or_in_their_place(case: Case, native: Library) -> None:
    plain, token = case._replace(inner=0), token_of(case, 9)
    before = passed(NativeLayer(native, parts_of(plain, native), TokenStates()), token, 9)
    after = passed(NativeLayer(native, parts_of(case, native), TokenStates()), token, 9)
    key, value, residual, normed, *chosen = after
    assert all(
        torch.equal(a, b) for a, b in zip([*before[:2], *before[3:]], [key, value, normed, *chosen], strict=True)
    )
    want = before[2].double() + added_by_block(case, normed)
    assert (residual.double() - want).norm() < 0.01 * want.norm()
    assert (residual.double() - before[2].double()).norm() > 0.1 * want.norm()


def test_blocks_that_are_not_served(native: Library) -> None:
    parts = parts_of(BLOCKS[0], native)
    assert parts.block is not None
    assert parts.served
    narrow = PackedMatrix(native, *random_matrix("int4", 32, 64))
    for changed in ({"down": narrow}, {"activation": "other"}, {"share": normal(1, 32, seed=1)}):
        assert not parts._replace(block=parts.block._replace(**changed)).served


@pytest.mark.parametrize("case", [SMALL, WIDE, *BLOCKS])
def test_threads_change_nothing(case: Case, native: Library) -> None:
    layer, before, found = NativeLayer(native, parts_of(case, native), TokenStates()), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(passed(layer, token_of(case, 40), 40))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_both_halves_at_once_append_the_token(case: Case, native: Library) -> None:
    layer, token = NativeLayer(native, parts_of(case, native), TokenStates()), token_of(case, 20)
    want = passed(layer, token, 20)
    written = [cache.clone() for cache in (token.keys, token.values)]
    for cache in (token.keys, token.values):
        cache[:, :, 19] = torch.nan
    state = layer.take(token.hidden, token.cosine, token.sine)
    keys, values = token.keys, token.values
    results = layer.compute(state, KeyValueRoom.of(keys[:, :, :20], values[:, :, :20]))
    layer.release(state)
    assert all(torch.equal(a, b) for a, b in zip(given(results), want, strict=True))
    assert torch.equal(token.keys, written[0])
    assert torch.equal(token.values, written[1])


def test_results_stay_what_they_were(native: Library) -> None:
    states = TokenStates()
    layers = [NativeLayer(native, parts_of(case, native), states) for case in (SMALL, CASES[3])]
    kept, copies = [], []
    for i in range(40):
        found = passed(layers[i % 2], token_of((SMALL, CASES[3])[i % 2], 3, seed=i), 3)
        kept.append(found)
        copies.append([tensor.clone() for tensor in found])
    assert all(torch.equal(a, b) for x, y in zip(kept, copies, strict=True) for a, b in zip(x, y, strict=True))


def test_two_states_at_once_do_not_meet(native: Library) -> None:
    layer, tokens = (
        NativeLayer(native, parts_of(SMALL, native), TokenStates()),
        [token_of(SMALL, 9, seed=i) for i in (1, 2)],
    )
    want = [passed(layer, token, 9)[2] for token in tokens]
    open_ = [layer.take(token.hidden, token.cosine, token.sine) for token in tokens]
    for state in open_:
        layer.begin(state)
    for token, state, expected in zip(tokens, open_, want, strict=True):
        longer = extended(token, state.results.key, state.results.value, 9)
        results = layer.finish(state, KeyValueRoom.of(*longer))
        assert torch.equal(results.residual, expected)
    for state in open_:
        layer.release(state)


def test_stages_are_timed_where_asked(native: Library) -> None:
    layer, token = NativeLayer(native, parts_of(WIDE, native), TokenStates()), token_of(WIDE, 30)
    plain = passed(layer, token, 30)
    times = StageTimes()
    for passes in (1, 2):
        before = times.seconds
        passed(layer, token, 30, times)
        assert times.passes == passes
        assert times.with_experts == 0
        took = dict(zip(STAGES, (new - old for new, old in zip(times.seconds, before, strict=True)), strict=True))
        assert took.pop("experts") == 0
        assert min(took.values()) > 0
    # The same memory serves a pass that is not timed.
    assert all(torch.equal(a, b) for a, b in zip(passed(layer, token, 30), plain, strict=True))
    assert times.passes == 2
    times.reset()
    assert times.seconds == (0.0,) * len(STAGES)
    assert times.passes == 0


def test_what_is_not_served_is_refused(native: Library) -> None:
    parts = parts_of(SMALL, native)
    assert parts.served
    odd = [
        parts._replace(output=parts.query, query=PackedMatrix(native, *random_matrix("int4", 32, 64))),
        parts._replace(after=parts.of_key),
        parts._replace(before=parts.before._replace(weight=parts.before.weight.float())),
        parts._replace(router=LayerRouter(normal(8, 32, seed=1), 2, True)),
        parts._replace(router=LayerRouter(normal(8, 64, seed=1), 9, True)),
        parts._replace(router=LayerRouter(normal(1025, 64, seed=1), 2, True)),
    ]
    for one in odd:
        assert not one.served
        with pytest.raises(UsageError, match="not served"):
            NativeLayer(native, one, TokenStates())

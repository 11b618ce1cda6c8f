"""A decoder of dense layers in one call: near its definition in float64, and the same bits however it is called."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch

from coterie.errors import UsageError
from coterie.native import DenseDecoder, DenseLayer, DenseNorm, Library, PackedMatrix

from .matrices import Matrix, random_matrix, with_threads

POSITIONS = 6
EPSILON = 1e-6


class Case(NamedTuple):
    width: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    outputs: int
    schemes: tuple[str, ...]
    layers: int = 2


CASES = [
    Case(64, 4, 2, 16, 96, 40, ("int8",)),
    Case(96, 6, 2, 32, 64, 33, ("int4", "int8")),
    Case(256, 3, 3, 64, 320, 128, ("int4",), layers=3),
]


def normal(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


class Built(NamedTuple):
    """A decoder, and what it is made of."""

    decoder: DenseDecoder
    layers: list[tuple[list[torch.Tensor], list[Matrix]]]
    last: torch.Tensor
    heads: list[Matrix]
    angles: torch.Tensor
    scale: float


def built(case: Case, native: Library, **changes: Any) -> Built:
    mixed, kept = case.heads * case.head, case.kv_heads * case.head
    sizes = (
        (mixed, case.width), (kept, case.width), (kept, case.width), (case.width, mixed), (case.inner, case.width),
        (case.inner, case.width), (case.width, case.inner),
    )  # fmt: skip
    layers, seed = [], 0
    for _ in range(case.layers):
        weights = [1 + 0.2 * normal(size, seed=seed + i) for i, size in enumerate((case.width, case.head) * 2)]
        weights[2], weights[3] = weights[3], weights[2]
        matrices = []
        for i, size in enumerate(sizes):
            found = random_matrix(case.schemes[i % len(case.schemes)], *size, seed=seed + i)
            matrices.append(found._replace(scales=found.scales / math.sqrt(size[1] / 16)))
            seed += 1
        layers.append(([weight.bfloat16() for weight in weights], matrices))
    heads = [random_matrix(case.schemes[0], case.outputs, case.width, seed=90 + i) for i in range(2)]
    last = (1 + 0.2 * normal(case.width, seed=80)).bfloat16()
    angles = (6 * torch.rand(POSITIONS, case.head // 2, generator=torch.Generator().manual_seed(81))).repeat(1, 2)
    scale = case.head**-0.5
    parts = {
        "layers": [
            DenseLayer(*(DenseNorm(one, EPSILON) for one in weights), *(PackedMatrix(native, *one) for one in found),
                       "silu")
            for weights, found in layers
        ],
        "last": DenseNorm(last, EPSILON),
        "heads": [PackedMatrix(native, *head) for head in heads],
        "cosine": angles.cos(),
        "sine": angles.sin(),
        "scale": scale,
    }  # fmt: skip
    return Built(DenseDecoder(native, **parts | changes), layers, last, heads, angles, scale)


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * weight.double()


def defined(case: Case, made: Built, x: torch.Tensor, head: int) -> torch.Tensor:
    """Logits of the last of all tokens in float64."""
    x = x.double()
    length = len(x)
    cosine, sine = made.angles[:length].double().cos(), made.angles[:length].double().sin()

    def rotated(heads: torch.Tensor) -> torch.Tensor:
        low, high = heads.chunk(2, dim=-1)
        return heads * cosine[:, None] + torch.cat([-high, low], dim=-1) * sine[:, None]

    for (before, of_query, of_key, after), matrices in made.layers:
        query, key, value, output, gate, up, down = (one.weights() for one in matrices)
        normed = norm(x, before)
        q = rotated(norm((normed @ query.T).unflatten(-1, (-1, case.head)), of_query))
        k = rotated(norm((normed @ key.T).unflatten(-1, (-1, case.head)), of_key))
        v = (normed @ value.T).unflatten(-1, (-1, case.head))
        k, v = (one.repeat_interleave(case.heads // case.kv_heads, dim=1) for one in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * made.scale
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -math.inf).softmax(-1), v)
        x = x + mixed.flatten(1) @ output.T
        normed = norm(x, after)
        x = x + (torch.nn.functional.silu(normed @ gate.T) * (normed @ up.T)) @ down.T
    return norm(x[-1], made.last) @ made.heads[head].weights().T


def passes(decoder: DenseDecoder, tokens: torch.Tensor, *sizes: int) -> list[torch.Tensor]:
    """Logits after each piece of some tokens."""
    sequence, found = decoder.begin(), []
    for piece in tokens.split(list(sizes)):
        found.append(decoder(sequence, piece.contiguous(), 1))
    assert sequence.length == len(tokens)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_are_near_the_definition(case: Case, native: Library) -> None:
    made, tokens = built(case, native), normal(POSITIONS, case.width, seed=3).bfloat16()
    found = passes(made.decoder, tokens, 2, *[1] * (POSITIONS - 2))
    for length, got in enumerate(found, start=2):
        want = defined(case, made, tokens[:length], 1)
        assert got.dtype is torch.float32
        assert (got.double() - want).norm() < 0.02 * want.norm()
    assert not torch.allclose(found[0], found[1], atol=0.1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_do_not_depend_on_threads_or_on_the_other_token(case: Case, native: Library) -> None:
    tokens, found = normal(POSITIONS, case.width, seed=4).bfloat16(), []
    for threads, sizes in ((1, [1] * 6), (1, [2, 2, 2]), (2, [2, 1, 1, 2]), (3, [1, 2, 2, 1]), (7, [2, 2, 1, 1])):
        decoder = built(case, native).decoder
        with_threads(threads, lambda d=decoder, s=sizes: found.append(passes(d, tokens, *s)[-1]))
    assert all(torch.equal(one, found[0]) for one in found)


def test_sequences_do_not_meet(native: Library) -> None:
    decoder = built(CASES[0], native).decoder
    texts = [normal(4, CASES[0].width, seed=seed).bfloat16() for seed in (5, 6)]
    alone = [passes(decoder, text, 2, 1, 1)[-1] for text in texts]
    sequences, got = [decoder.begin() for _ in texts], []
    for begin, end in ((0, 2), (2, 3), (3, 4)):
        got = [decoder(one, text[begin:end].contiguous(), 1) for one, text in zip(sequences, texts, strict=True)]
    assert all(map(torch.equal, alone, got))


def test_each_head_makes_logits_of_its_own(native: Library) -> None:
    made, tokens = built(CASES[0], native), normal(2, CASES[0].width, seed=7).bfloat16()
    for head in (0, 1):
        want = defined(CASES[0], made, tokens, head)
        assert (made.decoder(made.decoder.begin(), tokens, head).double() - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize(
    ("size", "dtype", "message"),
    [((3, 64), torch.bfloat16, "1 or 2 at a time"), ((1, 32), torch.bfloat16, "Embeddings must be"),
     ((1, 64), torch.float32, "Embeddings must be")],
)  # fmt: skip
def test_what_it_does_not_take(size: tuple[int, int], dtype: torch.dtype, message: str, native: Library) -> None:
    decoder = built(CASES[0], native).decoder
    with pytest.raises(UsageError, match=message):
        decoder(decoder.begin(), torch.zeros(size, dtype=dtype), 0)


def test_a_sequence_that_is_full(native: Library) -> None:
    decoder = built(CASES[0], native).decoder
    sequence, token = decoder.begin(), torch.ones(1, 64, dtype=torch.bfloat16)
    for _ in range(POSITIONS):
        decoder(sequence, token, 0)
    with pytest.raises(UsageError, match=f"takes {POSITIONS} tokens"):
        decoder(sequence, token, 0)


def test_parts_that_do_not_fit(native: Library) -> None:
    made = built(CASES[0], native)
    with pytest.raises(UsageError, match="Cosine and sine"):
        built(CASES[0], native, cosine=made.angles.bfloat16())
    with pytest.raises(UsageError, match="last norm"):
        built(CASES[0], native, last=DenseNorm(torch.ones(32), EPSILON))
    with pytest.raises(UsageError, match="not served"):
        built(CASES[0], native, layers=[])

"""Grouping gives transformers' rows in transformers' order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.kernels import group_by_expert

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**31))


def by_mask(index_TK: torch.Tensor, num_experts: int) -> dict[int, tuple[list[int], list[int]]]:
    """Tokens and slots per expert as the eager forward finds them."""
    mask = torch.nn.functional.one_hot(index_TK, num_classes=num_experts + 1).permute(2, 1, 0)
    found = {}
    for expert in range(num_experts):
        slots, tokens = torch.where(mask[expert])
        if len(tokens):
            found[expert] = (tokens.tolist(), slots.tolist())
    return found


def as_dict(index_TK: torch.Tensor, num_experts: int) -> dict[int, tuple[list[int], list[int]]]:
    grouping = group_by_expert(index_TK, num_experts)
    assert len(grouping.experts) == len(grouping.tokens) == len(grouping.slots)
    assert grouping.experts == sorted(set(grouping.experts))
    return {
        expert: (tokens.tolist(), slots.tolist())
        for expert, tokens, slots in zip(grouping.experts, grouping.tokens, grouping.slots, strict=True)
    }


@given(SHAPES)
def test_order_is_that_of_where(shape):
    tokens, top_k, num_experts, seed = shape
    generator = torch.Generator().manual_seed(seed)
    # The sentinel, num_experts, is among the ids; an expert may come twice for one token.
    index = torch.randint(0, num_experts + 1, (tokens, top_k), generator=generator)
    assert as_dict(index, num_experts) == by_mask(index, num_experts)


def test_only_sentinels_group_to_nothing():
    grouping = group_by_expert(torch.full((3, 2), 4), 4)
    assert (grouping.experts, grouping.tokens, grouping.slots) == ([], [], [])


def test_no_tokens_group_to_nothing():
    assert group_by_expert(torch.zeros(0, 2, dtype=torch.int64), 4).experts == []


@pytest.mark.parametrize("expert", [0, 3])
def test_everything_on_one_expert(expert):
    grouping = group_by_expert(torch.full((3, 2), expert), 4)
    assert grouping.experts == [expert]
    assert grouping.tokens[0].tolist() == [0, 1, 2, 0, 1, 2]
    assert grouping.slots[0].tolist() == [0, 0, 0, 1, 1, 1]

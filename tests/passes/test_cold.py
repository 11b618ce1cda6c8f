"""Which experts a decode step leaves out, from a router's choice and what is in memory."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch

from coterie.passes.cold import ColdDrop
from coterie.routing import Routed
from coterie.spec import ExpertKey

NONE = 8
KEYS = [ExpertKey("text", 0, "mlp", expert) for expert in range(NONE)]


class Memory:
    """What is in memory, and what each record takes."""

    def __init__(self, resident: Collection[int]) -> None:
        self.resident = set(resident)

    def __contains__(self, key: ExpertKey) -> bool:
        return key.expert in self.resident

    def to_read(self, keys: Collection[ExpertKey]) -> dict[ExpertKey, int]:
        return {key: 100 + key.expert for key in keys if key not in self}


def drop(share: float, resident: Collection[int]) -> ColdDrop:
    memory: Any = Memory(resident)
    return ColdDrop(share, KEYS, NONE, memory)


def chosen(ids: list[list[int]], weights: list[list[float]], dtype: torch.dtype = torch.float32) -> Routed:
    return Routed(torch.tensor(ids), torch.tensor(weights, dtype=dtype), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_light_and_not_in_memory_is_left_out_and_the_rest_stays_as_it_is(dtype: torch.dtype) -> None:
    routed = chosen([[3, 1, 5, 0]], [[0.5, 0.3, 0.125, 0.0625]], dtype)
    left, experts, nbytes = drop(0.3, resident=[1, 0])(routed)
    assert left.ids.tolist() == [[3, 1, NONE, 0]]  # 3 is heavy, 0 is in memory
    assert left.weights.dtype is dtype
    assert left.weights.tolist() == [[*routed.weights.tolist()[0][:2], 0.0, 0.0625]]
    assert (experts, nbytes, left.absent) == (1, 105, 0)
    # What was given is not changed: others look at it.
    assert routed.ids.tolist() == [[3, 1, 5, 0]]


@pytest.mark.parametrize("resident", [range(NONE), [3, 1, 5, 0]])
def test_where_all_are_in_memory_the_very_tensors_come_back(resident: Collection[int]) -> None:
    routed = chosen([[3, 1, 5, 0]], [[0.5, 0.3, 0.1, 0.05]])
    assert drop(1.0, resident)(routed) == (routed, 0, 0)
    assert drop(1.0, resident)(routed).routed.ids is routed.ids


def test_where_nothing_is_light_the_very_tensors_come_back() -> None:
    routed = chosen([[3, 1]], [[0.5, 0.25]])
    assert drop(0.5, [])(routed).routed.ids is routed.ids


def test_the_heaviest_always_stay() -> None:
    left, experts, _ = drop(1.0, [])(chosen([[3, 1, 5]], [[0.4, 0.4, 0.2]]))
    assert (left.ids.tolist(), experts) == ([[3, 1, NONE]], 1)


def test_each_token_goes_by_its_own_highest_weight() -> None:
    # 0.2 is light beside 0.8 and not beside 0.3.
    left, experts, nbytes = drop(0.5, [])(chosen([[0, 1], [2, 3]], [[0.8, 0.2], [0.3, 0.2]]))
    assert left.ids.tolist() == [[0, NONE], [2, 3]]
    assert (experts, nbytes) == (1, 101)


def test_what_another_token_needs_is_read_and_computed_for_all() -> None:
    left, experts, _ = drop(0.5, [])(chosen([[0, 1], [1, 2], [0, 2]], [[0.8, 0.2], [0.6, 0.2], [0.9, 0.1]]))
    assert left.ids.tolist() == [[0, 1], [1, NONE], [0, NONE]]
    assert experts == 1  # distinct ones: 2 is left out of two tokens


def test_slots_without_an_expert_and_identity_experts_are_nobodys_to_read() -> None:
    memory: Any = Memory([])
    cold = ColdDrop(0.5, KEYS, NONE + 2, memory)  # ids 8 and 9 give back what they get
    left, experts, _ = cold(chosen([[0, NONE, NONE + 2, 1]], [[0.8, 0.01, 0.0, 0.1]]))
    assert left.ids.tolist() == [[0, NONE, NONE + 2, NONE + 2]]
    assert experts == 1
    # An identity expert can be the heaviest.
    assert cold(chosen([[0, NONE]], [[0.1, 0.9]])).routed.ids.tolist() == [[NONE + 2, NONE]]


def test_it_knows_how_many_experts_are_usually_asked_for() -> None:
    cold = drop(0.5, [])
    assert cold.usual is None
    for _ in range(200):
        cold(chosen([[0, 1, 2, 3]], [[0.8, 0.5, 0.2, 0.1]]))
    assert cold.usual == 2
    for _ in range(200):
        cold(chosen([[0, 1, 2, 3], [4, 5, 6, 7]], [[0.8, 0.5, 0.5, 0.1], [0.4, 0.4, 0.4, 0.1]]))
    assert cold.usual == 3

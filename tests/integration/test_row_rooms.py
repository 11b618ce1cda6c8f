"""A token of each of several sequences goes into its own cache when a pass is over, or into none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from coterie.hf.row_caches import RowsAllLeftError, RowsApartError
from coterie.integration import RowRooms
from coterie.integration.growing_cache import GrowingRoom, room_ahead

from .test_growing_cache import filled, same, token

LENGTHS = (255, 256, 257, 3)
"""Before, at and after where room ends."""


def rooms_of(caches: list[DynamicCache], left: list[int] | None = None) -> RowRooms:
    rooms: list[list[GrowingRoom | None]] = []
    for layer in range(len(caches[0].layers)):
        rooms.append([])
        for cache in caches:
            rooms[-1].append(room_ahead(cache, layer, 2, 8, taken=rooms[-1]))
    told = [] if left is None else left
    return RowRooms(caches, [cache.get_seq_length() for cache in caches], rooms, told.append)


def compute(rooms: RowRooms, seeds: list[int]) -> None:
    """Writes a token of each row in every layer, where its place says."""
    for layer, of_rows in enumerate(rooms._rooms):
        for row, place in enumerate(rooms.places(layer)):
            room: Any = of_rows[row]
            key, value = token(seeds[row])
            assert (place.keys, place.length) == (room._keys.data_ptr(), room.used + 1)
            room._keys[:, :, room.used], room._values[:, :, room.used] = key[:, :, 0], value[:, :, 0]


def test_each_row_grows_in_its_own_cache() -> None:
    caches, theirs = [filled(n) for n in LENGTHS], [filled(n) for n in LENGTHS]
    for step in range(3):
        rooms = rooms_of(caches)
        seeds = [100 * step + row for row in range(len(caches))]
        assert rooms.get_seq_length() == max(rooms.lengths)
        compute(rooms, seeds)
        assert rooms.get_seq_length() == max(rooms.lengths) + 1
        for mine, other in zip(caches, theirs, strict=True):
            same(mine, other)
        rooms.commit()
        for other, seed in zip(theirs, seeds, strict=True):
            for layer in range(len(other.layers)):
                other.update(*token(seed), layer)
        for mine, other in zip(caches, theirs, strict=True):
            same(mine, other)


def test_what_is_not_committed_is_written_over() -> None:
    caches, theirs = [filled(n) for n in LENGTHS], [filled(n) for n in LENGTHS]
    compute(rooms_of(caches), [7, 7, 7, 7])
    rooms = rooms_of(caches)
    compute(rooms, [1, 2, 3, 4])
    rooms.commit()
    for seed, (mine, other) in enumerate(zip(caches, theirs, strict=True), start=1):
        for layer in range(len(other.layers)):
            other.update(*token(seed), layer)
        same(mine, other)


def test_copies_that_share_what_came_before_go_their_own_ways() -> None:
    first = filled(5)
    compute(rooms := rooms_of([first]), [1])
    rooms.commit()
    fork = copy.copy(first)
    fork.layers = [copy.copy(layer) for layer in first.layers]
    theirs = [copy.deepcopy(first), copy.deepcopy(first)]
    for step in range(2):
        compute(rooms := rooms_of([first, fork]), [2 + step, 4 + step])
        rooms.commit()
        for layer in range(2):
            theirs[0].update(*token(2 + step), layer)
            theirs[1].update(*token(4 + step), layer)
        same(first, theirs[0])
        same(fork, theirs[1])


def test_one_that_leaves_is_let_go_of_at_the_next_layer() -> None:
    caches, left = [filled(n) for n in (3, 4, 5)], list[int]()
    rooms = rooms_of(caches, left)
    before = rooms.places(0)
    rooms.leave(1)
    assert not left
    after = rooms.places(1)
    assert left == [1]
    assert (after[1].length, before[1].length) == (1, 5)
    assert rooms.caches[1] is None
    rooms.commit()
    assert [caches[row].get_seq_length() for row in range(3)] == [4, 4, 6]


def test_when_all_have_left_there_is_nothing_to_do() -> None:
    rooms = rooms_of([filled(3), filled(4)])
    rooms.leave(0)
    rooms.leave(1)
    with pytest.raises(RowsAllLeftError):
        rooms.places(0)


def test_layers_come_one_after_the_other() -> None:
    rooms = rooms_of([filled(3), filled(4)])
    with pytest.raises(RowsApartError, match="Layer 1 of 2 comes after 0 layers"):
        rooms.places(1)
    with pytest.raises(RowsApartError):
        rooms.update(torch.empty(0), torch.empty(0), 0)


def test_there_is_no_room_in_caches_of_other_kinds() -> None:
    assert room_ahead(object(), 0, 2, 8) is None
    assert room_ahead(DynamicCache(), 0, 2, 8) is None
    assert room_ahead(filled(3), 2, 2, 8) is None
    assert room_ahead(filled(3), 0, 4, 8) is None

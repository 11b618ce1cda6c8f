"""Beginnings of prompts: who has to go when there is no room, and who finds what."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from coterie.generation.prefix_tree import Node, PrefixTree


@dataclass
class Kept:
    nbytes: int = 99


Tree = PrefixTree[Kept]


def add(tree: Tree, *path: bytes, seconds: float = 1.0, nbytes: int = 99, salt: str = "") -> Node[Kept] | None:
    node: Node[Kept] | None = tree.root(salt)
    for key in path[:-1]:
        assert node is not None
        node = node.children[key]
    assert node is not None
    return tree.add(node, path[-1], Kept(nbytes), seconds)


def paths(tree: Tree, salt: str = "") -> set[bytes]:
    found, left = set(), [(b"", tree.root(salt))]
    while left:
        name, node = left.pop()
        left += [(name + key, child) for key, child in node.children.items()]
        found.add(name)
    return found - {b""}


def test_what_saves_the_fewest_seconds_per_byte_goes_first() -> None:
    tree = Tree(300)
    add(tree, b"a", seconds=3)
    add(tree, b"b", seconds=1)
    add(tree, b"c", seconds=2)
    add(tree, b"d", seconds=2)
    assert paths(tree) == {b"a", b"c", b"d"}
    assert tree.nbytes == 300


def test_large_pieces_go_before_small_ones_that_save_as_much() -> None:
    tree = Tree(400)
    add(tree, b"a", nbytes=199)
    add(tree, b"b", nbytes=99)
    add(tree, b"c", nbytes=199)
    assert paths(tree) == {b"b", b"c"}


def test_what_is_used_stays_and_what_is_not_used_for_long_goes_at_last() -> None:
    tree = Tree(200)
    slow = add(tree, b"s", seconds=3)
    assert slow is not None
    for number in range(9):
        add(tree, bytes([number]))
        tree.used(slow)
    assert b"s" in paths(tree)
    for number in range(9):
        add(tree, bytes([number]))
    assert b"s" not in paths(tree)


def test_what_comes_before_something_is_never_taken_away_under_it() -> None:
    tree = Tree(200)
    add(tree, b"a", seconds=0.001)
    add(tree, b"a", b"b", seconds=5)
    add(tree, b"c", seconds=9)
    assert paths(tree) == {b"a", b"c"}
    # Nor under what is about to come after it.
    tree = Tree(100)
    add(tree, b"a")
    assert add(tree, b"a", b"b") is None
    assert paths(tree) == {b"a"}


def test_what_is_gone_gets_no_children() -> None:
    tree = Tree(100)
    first = add(tree, b"a")
    assert first is not None
    tree.shrink(0)
    assert tree.nbytes == 0
    assert tree.add(first, b"b", Kept(), 1.0) is None
    assert len(tree) == 0


def test_more_than_there_may_be_takes_nothing_away() -> None:
    tree = Tree(200)
    add(tree, b"a")
    assert add(tree, b"b", nbytes=200) is None
    assert paths(tree) == {b"a"}


def test_salts_see_nothing_of_each_other_and_share_the_room() -> None:
    tree = Tree(200)
    begun = tree.root("anna")
    add(tree, b"a", salt="anna")
    add(tree, b"a", salt="bert")
    assert (len(tree), tree.nbytes) == (2, 200)
    assert paths(tree, "carl") == set()
    tree.clear("anna")
    assert (paths(tree, "anna"), paths(tree, "bert")) == (set(), {b"a"})
    # Who began before all of a salt was gone goes on all the same.
    assert tree.add(begun, b"x", Kept(), 1.0) is not None
    assert tree.add(tree.root("anna"), b"x", Kept(), 1.0) is tree.root("anna").children[b"x"]
    tree.clear()
    assert (len(tree), tree.nbytes) == (0, 0)


@pytest.mark.parametrize("to", [0, 100, 250, 10_000])
def test_shrinking_says_what_it_freed(to: int) -> None:
    tree = Tree(1000)
    for number in range(5):
        add(tree, *(bytes([other]) for other in range(number + 1)))
    before = tree.nbytes
    assert tree.shrink(to) == before - tree.nbytes
    assert tree.nbytes <= max(to, 0) or before <= to
    assert tree.nbytes == 100 * len(tree)

"""As many sequences share a pass as make a token cheapest."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from coterie.generation.row_count import RowCount


class Machine:
    """Passes that take what a rule says, for so many sequences."""

    def __init__(self, cost: Callable[[int], float], *, scatter: float = 0.2) -> None:
        self.count = RowCount()
        self.cost, self.scatter = cost, scatter
        self.random = random.Random(0)

    def run(self, sequences: int, tokens: int) -> Counter[int]:
        """New tokens of all of them by how many shared a pass."""
        found: Counter[int] = Counter()
        while found.total() < tokens * sequences:
            rows = self.count.most(sequences)
            self.count.took(rows, rows * self.cost(rows) * self.random.uniform(1 - self.scatter, 1 + self.scatter))
            found[rows] += rows
        return found

    def seconds(self, sequences: int, tokens: int) -> float:
        """Of a token, on average."""
        found = self.run(sequences, tokens)
        return sum(self.cost(rows) * count for rows, count in found.items()) / found.total()


def test_all_share_where_that_is_cheapest() -> None:
    machine = Machine(lambda rows: 1 / rows + 0.5)
    found = machine.run(8, 600)
    assert set(found) == {1, 4, 8}
    assert found[8] / found.total() > 0.9


def test_they_take_turns_where_that_is_cheapest() -> None:
    machine = Machine(lambda rows: 1 + 0.1 * rows)
    machine.run(8, 100)
    found = machine.run(8, 2000)
    assert found[1] / found.total() > 0.9


def test_half_of_them_where_all_are_too_many() -> None:
    """As where the experts of all do not fit into memory beside each other."""
    machine = Machine(lambda rows: 1.0 if rows == 1 else 0.6 if rows <= 8 else 1.5)
    machine.run(16, 100)
    found = machine.run(16, 2000)
    assert found[8] / found.total() > 0.9


@pytest.mark.parametrize("sequences", [2, 3, 5, 16])
@pytest.mark.parametrize("slope", [-0.3, 0.0, 0.05, 1.0])
def test_it_costs_little_to_know(sequences: int, slope: float) -> None:
    """Never much more than one after the other."""
    machine = Machine(lambda rows: 1 + slope * (1 - 1 / rows))
    assert machine.seconds(sequences, 1000) < 1.05


def test_it_notices_when_things_change() -> None:
    machine = Machine(lambda rows: 1.0 if rows == 1 else 1.5)
    machine.run(4, 300)
    assert machine.run(4, 1)[1] == 4
    machine.cost = lambda rows: 1 / rows
    machine.run(4, 1000)
    assert machine.run(4, 1)[4] == 4


def test_numbers_that_differ_much_are_judged_apart() -> None:
    machine = Machine(lambda rows: {1: 1.0, 2: 2.0}.get(rows, 0.5))
    machine.run(2, 200)
    machine.run(8, 200)
    assert machine.run(2, 1)[1] == 2
    assert machine.run(8, 1)[8] == 8


def test_passes_of_other_numbers_are_not_taken_for_one_block() -> None:
    machine = Machine(lambda rows: 1 / rows, scatter=0.0)
    for step in range(400):
        sequences = 5 + step % 2
        rows = machine.count.most(sequences)
        # A block of five that began with a pass of six would be dear.
        machine.count.took(rows, 1000.0 if sequences == 6 else rows / rows)
    assert machine.run(5, 1)[5] == 5

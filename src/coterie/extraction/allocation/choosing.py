"""Which level each matrix gets, so that bytes suffice and what experts are off by, weighted, is least.

Every matrix has levels: bytes, and what it costs to have it in so few. The lower convex hull of these is a way upwards
in steps, each of which saves less per byte than the one before. So the steps of all matrices are taken in the order of
what they save per byte, for as long as bytes last. No other choice is better, but for the last few bytes (Everett,
"Generalized Lagrange multiplier method", 1963).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ABSENCE = 4.0
"""What it costs to leave an expert out, in units of its weight. The router takes another one in its place, whose output
is as large and points elsewhere: that is 2. The rest is for tokens that no profile has seen. In the bundled model, 2 to
8 serve the domain that was asked for alike, 1 makes it twice as far from the full model (docs/schemes.md)."""

Matrix = tuple[int, int]
"""An expert, and its matrix, by number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One way of storing a matrix.

    Attributes:
        scheme: Its name.
        nbytes: Bytes of the matrix, scales included.
        cost: What it is off by, weighted.
    """

    scheme: str
    nbytes: int
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An expert that is to get levels.

    Attributes:
        matrices: The levels of each of its matrices, in any order.
        absence: What it costs to leave the expert out; None if it has to stay.
    """

    matrices: tuple[tuple[Level, ...], ...]
    absence: float | None = None


@dataclass(frozen=True, slots=True)
class _Step:
    """From one choice to a better and larger one.

    Attributes:
        saved: Cost that it saves.
        nbytes: Bytes that it takes.
        levels: Matrix → the level that it has afterwards.
        after: The step of the same matrix, or of the same expert, that comes before, by number; None if none does.
    """

    saved: float
    nbytes: int
    levels: Mapping[Matrix, Level]
    after: int | None

    @property
    def rate(self) -> float:
        return self.saved / self.nbytes


def smallest_nbytes(candidates: Sequence[Candidate]) -> int:
    """The fewest bytes that these experts can have."""
    return sum(
        min(level.nbytes for level in levels)
        for candidate in candidates
        if candidate.absence is None
        for levels in candidate.matrices
    )


def choose(candidates: Sequence[Candidate], nbytes: int) -> list[tuple[Level, ...] | None]:
    """The levels of each expert's matrices; None for an expert that is left out.

    Args:
        candidates: The experts.
        nbytes: What all matrices together may take; at least :func:`smallest_nbytes`.
    """
    chosen: dict[Matrix, Level] = {}
    steps: list[_Step] = []
    for number, candidate in enumerate(candidates):
        begin, found = _way(number, candidate, len(steps))
        chosen.update(begin)
        steps += found
    left = nbytes - sum(level.nbytes for level in chosen.values())
    taken: set[int] = set()
    for place in sorted(range(len(steps)), key=lambda place: (-steps[place].rate, place)):
        step = steps[place]
        if step.nbytes <= left and (step.after is None or step.after in taken):
            left -= step.nbytes
            chosen.update(step.levels)
            taken.add(place)
    return [
        tuple(chosen[number, matrix] for matrix in range(len(candidate.matrices))) if (number, 0) in chosen else None
        for number, candidate in enumerate(candidates)
    ]


def _way(number: int, candidate: Candidate, first: int) -> tuple[dict[Matrix, Level], list[_Step]]:
    """The levels that an expert has to begin with, and its steps; ``first`` is the number of the first of them."""
    hulls = [_hull(levels) for levels in candidate.matrices]
    begin = {(number, matrix): hull[0] for matrix, hull in enumerate(hulls)}
    ways = [(matrix, low, high) for matrix, hull in enumerate(hulls) for low, high in itertools.pairwise(hull)]
    ways.sort(key=lambda way: (way[2].cost - way[1].cost) / (way[2].nbytes - way[1].nbytes))
    steps: list[_Step] = []
    last: dict[int, int] = {}
    if candidate.absence is not None:
        entry, skipped = _entry(candidate.absence, begin, [(number, matrix, high) for matrix, _, high in ways])
        steps.append(entry)
        last = dict.fromkeys(range(len(hulls)), first)
        begin, ways = {}, ways[skipped:]
    for matrix, low, high in ways:
        place = first + len(steps)
        step = _Step(low.cost - high.cost, high.nbytes - low.nbytes, {(number, matrix): high}, last.get(matrix))
        steps.append(step)
        last[matrix] = place
    return begin, steps


def _entry(absence: float, least: Mapping[Matrix, Level], ways: Sequence[tuple[int, int, Level]]) -> tuple[_Step, int]:
    """The first step of an expert that may be left out: to that of its choices which saves most per byte.

    Returns:
        The step, and how many of ``ways`` it includes.
    """
    levels = dict(least)
    best, included = _to(absence, levels), 0
    for count, (number, matrix, level) in enumerate(ways, start=1):
        levels[number, matrix] = level
        step = _to(absence, levels)
        if step.rate > best.rate:
            best, included = step, count
    return best, included


def _to(absence: float, levels: Mapping[Matrix, Level]) -> _Step:
    cost, nbytes = sum(level.cost for level in levels.values()), sum(level.nbytes for level in levels.values())
    return _Step(absence - cost, nbytes, dict(levels), None)


def _hull(levels: Sequence[Level]) -> list[Level]:
    """Those levels that are worth having: the lower convex hull, from the smallest to the best."""
    hull: list[Level] = []
    for level in sorted(levels, key=lambda level: (level.nbytes, level.cost)):
        if hull and level.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _slope(hull[-2], level) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(level)
    return hull


def _slope(low: Level, high: Level) -> float:
    return (high.cost - low.cost) / (high.nbytes - low.nbytes)

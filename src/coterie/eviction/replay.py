"""What each policy would have made of a recorded run, at several capacities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from coterie.errors import UsageError
from coterie.eviction.belady import belady, compulsory
from coterie.eviction.policy import POLICY_NAMES, check_policy
from coterie.eviction.recorded import RecordedTrace
from coterie.eviction.simulator import simulate
from coterie.eviction.trace import Outcome, Scope
from coterie.spec import ExpertKey

REPLAY_SCHEMA_VERSION = 1
SCOPES: tuple[Scope, ...] = ("global", "layer")
_KNEE_POINTS = 16
_KNEE_POLICY = "lru"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRow:
    """One policy at one capacity.

    Attributes:
        scope: ``global`` or ``layer`` (an even share for each).
        policy: Name; ``belady`` is the optimum.
        capacity: Experts that fit.
        residency: The same as a share of all experts.
        hit_rate: Hits per request, from an empty cache.
        gap_closed: Share of the way from LRU to Belady; None where they are less than half a point apart.
        misses: Experts read.
        reads_per_token: Experts read per token.
        bytes_per_token: Bytes read per token; None if the size of an expert is not known.
    """

    scope: Scope
    policy: str
    capacity: int
    residency: float
    hit_rate: float
    gap_closed: float | None
    misses: int
    reads_per_token: float
    bytes_per_token: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """Where the curve of hit rate over capacity bends.

    Attributes:
        policy: The policy whose curve it is.
        capacity: Experts that fit.
        residency: The same as a share of all experts.
        hit_rate: The hit rate there.
    """

    policy: str
    capacity: int
    residency: float
    hit_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What a replay found.

    Attributes:
        schema_version: Of this form.
        trace: Name of the file.
        model: Name of the model.
        tokens: Tokens replayed.
        requests: Experts asked for.
        experts: Experts of the model.
        experts_known: Whether the file says so; otherwise the highest ids do.
        expert_nbytes: Bytes of an expert, if given.
        working_set: Experts that one step needs, on average.
        compulsory_hit_rate: The bound that no capacity passes: every expert is read once.
        rows: By scope, capacity and policy.
        knee: With one capacity for all layers; None if no curve bends.
    """

    schema_version: int
    trace: str
    model: str
    tokens: int
    requests: int
    experts: int
    experts_known: bool
    expert_nbytes: int | None
    working_set: float
    compulsory_hit_rate: float
    rows: tuple[ReplayRow, ...]
    knee: Knee | None


def simulations(capacities: Sequence[int], policies: Sequence[str], scopes: Sequence[Scope]) -> int:
    """How often :func:`replay` will call ``progress``."""
    return len(capacities) * len(scopes) * (len({*policies, "lru"}) + 1) + _KNEE_POINTS


def replay(
    trace: RecordedTrace,
    capacities: Sequence[int],
    *,
    policies: Sequence[str] = POLICY_NAMES,
    scopes: Sequence[Scope] = SCOPES,
    expert_nbytes: int | None = None,
    expected: Mapping[ExpertKey, float] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> ReplayReport:
    """Replays a trace through the policies that the cache uses, and through the optimum.

    Args:
        trace: The run.
        capacities: Experts that fit.
        policies: Names.
        scopes: Which ways to divide the capacity among the layers.
        expert_nbytes: Bytes of an expert.
        expected: For the policy ``trust``: what a profile makes one expect, uses per token.
        progress: Called after each simulation.

    Raises:
        UsageError: For an unknown policy or scope, or a capacity that is too small for the scope.
    """
    for name in policies:
        check_policy(name, profile=expected is not None)
    for scope in scopes:
        if scope == "layer" and min(capacities) < trace.layers:
            raise UsageError(
                f"{min(capacities)} experts do not divide among {trace.layers} layers.",
                advice=f"Give a capacity of at least {trace.layers / trace.experts:.1%}, or --scope global.",
                expected=trace.layers,
                got=min(capacities),
            )
    rows = [
        row
        for scope in scopes
        for capacity in capacities
        for row in _rows(trace, capacity, policies, scope, expert_nbytes, expected, progress)
    ]
    bound = compulsory(trace.groups, trace.experts)
    return ReplayReport(
        schema_version=REPLAY_SCHEMA_VERSION,
        trace=trace.name,
        model=trace.model,
        tokens=trace.tokens,
        requests=bound.requests,
        experts=trace.experts,
        experts_known=trace.experts_known,
        expert_nbytes=expert_nbytes,
        working_set=trace.working_set,
        compulsory_hit_rate=bound.hit_rate,
        rows=tuple(rows),
        knee=_curve_knee(trace, progress),
    )


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Where an increasing curve bends: the index of the point farthest above the chord from its first to its last.

    Both axes are first scaled to [0, 1]. This is the knee of Kneedle (Satopää, Albrecht, Irwin, Raghavan: "Finding a
    'Kneedle' in a Haystack: Detecting Knee Points in System Behavior", 2011) for a whole curve.

    Args:
        points: (x, y) with growing x.

    Returns:
        The index, or None if no point lies above the chord.
    """
    if len(points) < 3:
        return None
    (left, low), (right, high) = points[0], points[-1]
    if right <= left or high <= low:
        return None
    rises = [(y - low) / (high - low) - (x - left) / (right - left) for x, y in points]
    best = max(range(len(points)), key=rises.__getitem__)
    return best if rises[best] > 1e-9 else None


def _curve_knee(trace: RecordedTrace, progress: Callable[[], None]) -> Knee | None:
    curve: list[tuple[int, float]] = []
    for point in range(1, _KNEE_POINTS + 1):
        capacity = max(1, round(trace.experts * point / _KNEE_POINTS))
        curve.append((capacity, simulate(trace.groups, capacity, _KNEE_POLICY).hit_rate))
        progress()
    index = knee(curve)
    if index is None:
        return None
    capacity, rate = curve[index]
    return Knee(policy=_KNEE_POLICY, capacity=capacity, residency=capacity / trace.experts, hit_rate=rate)


def _rows(
    trace: RecordedTrace,
    capacity: int,
    policies: Sequence[str],
    scope: Scope,
    expert_nbytes: int | None,
    expected: Mapping[ExpertKey, float] | None,
    progress: Callable[[], None],
) -> Iterator[ReplayRow]:
    def counted(outcome: Outcome) -> Outcome:
        progress()
        return outcome

    lru = counted(simulate(trace.groups, capacity, "lru", scope=scope))
    others = [
        lru if name == "lru" else counted(simulate(trace.groups, capacity, name, scope=scope, expected=expected))
        for name in policies
    ]
    optimum = counted(belady(trace.groups, capacity, scope=scope))
    gap = optimum.hit_rate - lru.hit_rate
    for outcome in (*others, optimum):
        reads = outcome.misses / trace.tokens
        yield ReplayRow(
            scope=scope,
            policy=outcome.policy,
            capacity=capacity,
            residency=capacity / trace.experts,
            hit_rate=outcome.hit_rate,
            gap_closed=(outcome.hit_rate - lru.hit_rate) / gap if gap >= 0.005 else None,
            misses=outcome.misses,
            reads_per_token=reads,
            bytes_per_token=None if expert_nbytes is None else reads * expert_nbytes,
        )

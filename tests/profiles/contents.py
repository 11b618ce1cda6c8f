"""Everything that a profile holds, in a form that can be compared."""

from typing import Any

from coterie.profiles import ProfileDatabase, SegmentFacts
from coterie.profiles.packing import pack_tokens, segment_digest


def contents(database: ProfileDatabase) -> dict[str, Any]:
    """Runs, segments, tokens and marks of all models."""
    found: dict[str, Any] = {}
    for run in database.runs():
        vocabulary = database.vocabulary(run.uuid)
        states = {**vocabulary.banks, **vocabulary.totals}
        found[run.uuid] = {
            "run": run,
            "segments": {segment.number: segment_digest(segment) for segment in database.segments(run.uuid)},
            "tokens": {key: (state.segments, pack_tokens(state)) for key, state in states.items()},
            "marks": database.marks(run.uuid),
        }
    return found


def same_segments(one: list[SegmentFacts], other: list[SegmentFacts]) -> bool:
    """Whether two lists of segments hold the same counters."""
    return [(s.number, segment_digest(s)) for s in one] == [(s.number, segment_digest(s)) for s in other]

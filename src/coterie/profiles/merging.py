"""Profiles into one: copies of runs meet, and the larger of each counter stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coterie.errors import ProfileIdentityError, ProfileNotFoundError, UsageError
from coterie.profiles.database import ProfileDatabase, some_of
from coterie.profiles.facts import Mark, RunFacts, SegmentFacts, Vocabulary


class ProfileSource(Protocol):
    """What runs can be copied from: a database, or another instance."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def identities(self) -> Mapping[str, str]:
        """Fingerprints of models → names."""
        ...

    def runs(self, identity: str | None = None) -> Sequence[RunFacts]:
        """All runs, or those of a model."""
        ...

    def digests(self, uuid: str) -> Mapping[int, str]:
        """Numbers of a run's segments → digests of their content."""
        ...

    def segments(self, uuid: str, numbers: Sequence[int] | None = None) -> Iterator[SegmentFacts]:
        """Segments of a run, ascending."""
        ...

    def vocabulary(self, uuid: str) -> Vocabulary:
        """Counts of tokens of a run; empty if they are not to be had."""
        ...

    def marks(self, uuid: str) -> Mapping[str, Mark]:
        """How far inputs have been counted; empty if that is not to be had."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What was copied.

    Attributes:
        schema_version: Version of this form.
        source: Where from.
        into: Where to.
        runs: Runs of the source.
        segments: Segments that were copied, or joined with others.
        same: Segments that were there already.
        tokens: Tokens of the copied segments.
    """

    schema_version: int = 1
    source: str
    into: str
    runs: int
    segments: int
    same: int
    tokens: int


def merge(
    sources: Sequence[ProfileSource],
    into: ProfileDatabase,
    *,
    several_models: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[MergeReport]:
    """Copies all runs of the sources.

    A segment is copied in one transaction, and only if its content differs from what is there. So whatever happens in
    between, every segment is whole, and doing it again finishes it. Merging is commutative, associative and
    idempotent: any order and number of merges gives the same facts.

    Args:
        sources: Where from.
        into: Where to.
        several_models: Whether they may be about different models.
        progress: Told the tokens of each copied segment.

    Raises:
        ProfileIdentityError: If they are about different models and must not be; nothing was copied then.
    """
    if not several_models:
        _check_same_model([*sources, into])
    return [copy_runs(source, into, progress=progress) for source in sources]


def _check_same_model(profiles: Sequence[ProfileSource]) -> None:
    first: tuple[str, str, str] | None = None
    for profile in profiles:
        for identity, model in profile.identities().items():
            if first is None:
                first = (profile.name, identity, model)
            elif identity != first[1]:
                raise ProfileIdentityError(
                    f"{profile.name} is about the model {identity} ({model}), but {first[0]} is about {first[1]} "
                    f"({first[2]}).",
                    advice="Counts of different models cannot be compared. To keep both in one database: "
                    "several_models=True (--several-models).",
                    expected=first[1],
                    got=identity,
                )


def copy_runs(
    source: ProfileSource,
    into: ProfileDatabase,
    *,
    identity: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> MergeReport:
    """Copies the runs of one source, or those of one model; see :func:`merge`."""
    copied = same = tokens = 0
    runs = source.runs(identity)
    for run in runs:
        into.add_run(run)
        have, there = into.digests(run.uuid), source.digests(run.uuid)
        wanted = [number for number, digest in there.items() if have.get(number) != digest]
        same += len(there) - len(wanted)
        for segment in source.segments(run.uuid, wanted) if wanted else ():
            into.write_segment(run.uuid, segment)
            copied, tokens = copied + 1, tokens + segment.tokens
            if progress is not None:
                progress(segment.tokens)
        vocabulary = source.vocabulary(run.uuid)
        if vocabulary.banks or vocabulary.totals:
            into.write_vocabulary(run.uuid, vocabulary)
        if marks := source.marks(run.uuid):
            into.write_marks(run.uuid, marks.values())
    return MergeReport(source=source.name, into=into.name, runs=len(runs), segments=copied, same=same, tokens=tokens)


def sync(
    local: ProfileDatabase,
    remote: ProfileSource,
    *,
    identity: str | None = None,
    pull: bool = True,
    push: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[MergeReport]:
    """Makes two profiles know the same about a model: pulls what is missing here, pushes what is missing there.

    Args:
        local: This side.
        remote: The other; it is pushed to only if it is a database.
        identity: Fingerprint of the model. Default: the one that the local side is about, else that of the other.
        pull: Whether to copy from there.
        push: Whether to copy to there.
        progress: Told the tokens of each copied segment.

    Raises:
        UsageError: If there are several models and none is named.
        ProfileNotFoundError: If neither side knows the model.
        ProfileIdentityError: If both know one, and not the same.
    """
    which = identity if identity is not None else _common_identity(local, remote)
    if which not in local.identities() and which not in remote.identities():
        raise ProfileNotFoundError(f"Neither {local.name} nor {remote.name} has runs of the model {which}.", got=which)
    reports = []
    if pull:
        reports.append(copy_runs(remote, local, identity=which, progress=progress))
    if push and isinstance(remote, ProfileDatabase):
        reports.append(copy_runs(local, remote, identity=which, progress=progress))
    return reports


def _common_identity(local: ProfileSource, remote: ProfileSource) -> str:
    here, there = local.identities(), remote.identities()
    if not here and not there:
        raise ProfileNotFoundError(f"Nothing was recorded in {local.name}, nor in {remote.name}.")
    if len(here) == 1:
        # What the other side has of other models is none of this one's business.
        return next(iter(here))
    candidates = sorted(here.keys() & there.keys()) if here else sorted(there)
    if len(candidates) == 1:
        return candidates[0]
    raise UsageError(
        f"{(local if here else remote).name} is about several models: {some_of(sorted(here or there))}.",
        advice="Say which, by its fingerprint.",
        got=sorted(here or there),
    )

"""Runs a model over material, file by file and window by window, and records a profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.cluster.spreading import spread
from coterie.cluster.workers import Here, RemoteModel, Workers, never
from coterie.engine import ModelSource, open_source
from coterie.engine.bit_identity import with_threads, worker_facts
from coterie.engine.profile_runs import recording_run
from coterie.engine.source import text_component
from coterie.errors import UnsupportedError, UsageError
from coterie.evaluate.planning import DEFAULT_CONTEXT
from coterie.evaluate.texts import beginning
from coterie.generation.opened import OpenModel
from coterie.generation.processors import Processors
from coterie.hf.context import model_context
from coterie.profiles import BankShape, Group, ProfileDatabase
from coterie.profiles.inference import LEAST_SEGMENTS
from coterie.profiles.observations import Observations
from coterie.spec import DEFAULT_LABEL
from coterie.spec.opening import check_recording
from coterie.survey.fresh import fresh_profile
from coterie.survey.material import Material, without_repetitions
from coterie.survey.reading import Piece, Reader, Reading
from coterie.survey.segments import SegmentEnds
from coterie.survey.steps import Steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a survey did.

    Attributes:
        schema_version: Version of this structure when written as JSON.
        profile: Where it was recorded, without a password.
        model: Name of the model.
        identity: Its fingerprint.
        run: UUID of the run.
        label: Its label.
        files: Files in all.
        finished: Of these, done now, by earlier surveys or by this one.
        interrupted: Whether it was stopped; the same call goes on.
        tokens: Tokens that this survey recorded, by modality, domain and phase.
        too_few: Of these groups, those of which the profile has too few segments for a report, and how many.
    """

    schema_version: int = 1
    profile: str
    model: str
    identity: str
    run: str
    label: str
    files: int
    finished: int
    interrupted: bool
    tokens: tuple[tuple[Group, int], ...]
    too_few: tuple[tuple[Group, int], ...]


def survey(
    model: PreTrainedModel | OpenModel | RemoteModel,
    where: str | Path,
    material: Sequence[Material],
    *,
    label: str = DEFAULT_LABEL,
    context: int | None = None,
    limit: int | None = None,
    contributions: bool = True,
    vocabulary: int = 64,
    segment_tokens: int | None = None,
    several_models: bool = False,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Survey:
    """Records what a model's experts do on material.

    Texts are read and computed a window at a time, each token once, with what is before it in its window as context;
    a sound or a picture is a prompt by itself. How far each file has come is kept in the profile with the counters:
    killed at any moment, the same call goes on and counts nothing twice. A file that was recorded is not recorded again
    under the same label.

    On a cluster its workers read, and what they observe is counted here, in the order of the material. So the profile
    is the same as that of a model in this process.

    Args:
        model: From :func:`coterie.load`; or a model that the workers of a cluster open.
        where: The profile: a file, which is made if it is not there, or ``postgresql://USER@HOST/DATABASE``.
        material: From :func:`gather`; on a cluster, too, its files have to be on this machine alone.
        label: Which run to go on with, or to begin.
        context: Tokens of a window; default: 512, or what the model was made for if that is less.
        limit: The most tokens of each text.
        contributions: Measure what experts add to their layers' output.
        vocabulary: Tokens kept per expert; 0 counts no token ids.
        segment_tokens: Tokens after which a segment of the profile ends, between windows and files. Default: as many as
            give each domain about 32 segments, and 1,024 at most.
        several_models: Allow a profile that is about other models, too.
        should_stop: Asked between windows and files, and while workers of a cluster are waited for.
        progress: Told the bytes of files that are done since it was last called, earlier surveys' included.

    Raises:
        UsageError: If a value is out of range, or there is no such cluster.
        UnsupportedError: If the model does not read texts.
        InputError: If a file cannot be used; what was recorded before is kept.
        ProfileError: If the profile cannot be used; at the end it says what is lost.
        ClusterError: If workers have another model, or are lost again and again; what was recorded before is kept.
        CoterieError: As reading experts does.
    """
    files = without_repetitions(material)
    if not files:
        raise UsageError("There is nothing to run the model over.", advice="Give texts, sounds or pictures.")
    finished, tokens, stops = 0, Counter[Group](), should_stop or never
    with (
        _readers(model, context, limit, contributions, stops) as readers,
        fresh_profile(where),
        recording_run(
            where,
            readers.source,
            readers.banks,
            label=label,
            resume=True,
            several_models=several_models,
            vocabulary=vocabulary,
            segment_tokens=segment_tokens,
        ) as recording,
    ):
        ends = None if segment_tokens is not None else SegmentEnds(files, limit)
        steps = Steps(readers.processors, room=readers.room, limit=limit, progress=recording.progress)
        shared_out = readers.workers.map(steps.through(files), lambda step: step.piece, stops)
        for step, observations in shared_out:
            if observations is not None:
                observations.count_into(recording)
                tokens.update(observations.tokens)
            if step.position is not None:
                ends_here = ends is not None and ends.after(step.file, recording.tokens, finished=step.done)
                recording.mark(step.file.name, step.position, done=step.done, ends_segment=ends_here)
                if ends is not None and not recording.tokens:
                    ends.ended()
            if progress is not None:
                progress(step.nbytes)
            finished += step.last
        interrupted = finished < len(files)
        # Those after the one that was interrupted may have been finished before.
        for one in files[finished:]:
            finished += recording.progress(one.name).done
    run = recording.run
    with ProfileDatabase(where) as database:
        segments = database.group_segments(run.identity)
    return Survey(
        profile=recording.database.name,
        model=run.model,
        identity=run.identity,
        run=run.uuid,
        label=run.label,
        files=len(files),
        finished=finished,
        interrupted=interrupted,
        tokens=tuple(sorted(tokens.items())),
        too_few=tuple(
            (group, segments.get(group, 0)) for group in sorted(tokens) if segments.get(group, 0) < LEAST_SEGMENTS
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Readers:
    """Who reads, and what is known of their model.

    Attributes:
        source: What it is opened from.
        processors: What makes its inputs.
        banks: Its banks.
        room: Tokens of a text in a window.
        workers: Who reads.
    """

    source: ModelSource
    processors: Processors
    banks: tuple[BankShape, ...]
    room: int
    workers: Workers[Piece, Observations]


@contextmanager
def _readers(
    model: PreTrainedModel | OpenModel | RemoteModel,
    context: int | None,
    limit: int | None,
    contributions: bool,
    should_stop: Callable[[], bool],
) -> Iterator[_Readers]:
    if not isinstance(model, RemoteModel):
        opened = model if isinstance(model, OpenModel) else OpenModel.of(model)
        source, processors = opened.runtime.source, opened.processors
        room = _room(source, processors, context, limit)
        reader = Reader(opened, contributions=contributions)
        yield _Readers(source=source, processors=processors, banks=reader.banks, room=room, workers=Here(reader))
        return
    remote = with_threads(model)
    path, opening = remote.path, remote.opening
    check_recording(opening.drop_cold, "profile")
    part = opening.component or text_component(
        path, revision=opening.revision, offline=opening.offline, max_rate=opening.max_rate
    )
    source = open_source(
        path,
        component=part,
        revision=opening.revision,
        offline=opening.offline,
        fetch=opening.missing == "fetch",
        max_rate=opening.max_rate,
    )
    processors = Processors(source.directory, store=source.store)
    room = _room(source, processors, context, limit)
    work, expected = Reading(model=remote, contributions=contributions), worker_facts((path, source, opening))
    with spread(remote.address, remote.each, work, expected, should_stop) as (workers, facts):
        yield _Readers(source=source, processors=processors, banks=facts.details, room=room, workers=workers)


def _room(source: ModelSource, processors: Processors, context: int | None, limit: int | None) -> int:
    """Tokens of a text in a window, beside the one that the tokenizer begins every text with."""
    if getattr(source.config, "is_encoder_decoder", False) or {bank.component for bank in source.num_experts} == {
        "talker"
    }:
        raise UnsupportedError(
            f"{source.model_class.__name__} does not read texts and go on with them.",
            advice="Record what it generates: model.coterie.record_profile.",
        )
    longest = model_context(source.config)
    tokens = min(DEFAULT_CONTEXT, longest or DEFAULT_CONTEXT) if context is None else context
    if longest is not None and tokens > longest:
        raise UsageError(
            f"context={tokens} is more than the {longest} tokens that the model was made for.", got=tokens, most=longest
        )
    room = tokens - len(beginning(processors.tokenizer))
    for name, value in (("context", room), ("limit", 1 if limit is None else limit)):
        if value < 1:
            raise UsageError(f"{name} is too small: no token is left.", got=context if name == "context" else limit)
    return room

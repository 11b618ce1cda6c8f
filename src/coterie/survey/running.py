"""Runs an open model over material, file by file and window by window, and records a profile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from coterie.engine.profiling import ProfileRecorder
from coterie.errors import CoterieError, UnsupportedError, UsageError
from coterie.evaluate.planning import DEFAULT_CONTEXT
from coterie.evaluate.texts import beginning
from coterie.evaluate.windows import plan_windows
from coterie.files.text import text_parts
from coterie.generation.inputs import build_inputs
from coterie.generation.opened import OpenModel
from coterie.hf.context import model_context
from coterie.hf.tokenizer import encode_text
from coterie.profiles import Group, ProfileDatabase
from coterie.profiles.inference import LEAST_SEGMENTS
from coterie.spec import DEFAULT_LABEL
from coterie.survey.fresh import fresh_profile
from coterie.survey.material import Material, without_repetitions
from coterie.survey.segments import SegmentEnds

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


@torch.inference_mode()
def survey(
    model: PreTrainedModel | OpenModel,
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

    Args:
        model: From :func:`coterie.load`.
        where: The profile: a file, which is made if it is not there, or ``postgresql://USER@HOST/DATABASE``.
        material: From :func:`gather`.
        label: Which run to go on with, or to begin.
        context: Tokens of a window; default: 512, or what the model was made for if that is less.
        limit: The most tokens of each text.
        contributions: Measure what experts add to their layers' output.
        vocabulary: Tokens kept per expert; 0 counts no token ids.
        segment_tokens: Tokens after which a segment of the profile ends, between windows and files. Default: as many as
            give each domain about 32 segments, and 1,024 at most.
        several_models: Allow a profile that is about other models, too.
        should_stop: Asked between windows and files.
        progress: Told the bytes of files that are done since it was last called, earlier surveys' included.

    Raises:
        UsageError: If a value is out of range.
        UnsupportedError: If the model does not read texts.
        InputError: If a file cannot be used; what was recorded before is kept.
        ProfileError: If the profile cannot be used; at the end it says what is lost.
        CoterieError: As reading experts does.
    """
    files = without_repetitions(material)
    if not files:
        raise UsageError("There is nothing to run the model over.", advice="Give texts, sounds or pictures.")
    opened = model if isinstance(model, OpenModel) else OpenModel.of(model)
    room = _room(opened, context, limit)
    finished, interrupted = 0, False
    with (
        fresh_profile(where),
        opened.runtime.record_profile(
            where,
            domain=files[0].domain,
            label=label,
            contributions=contributions,
            vocabulary=vocabulary,
            segment_tokens=segment_tokens,
            resume=True,
            several_models=several_models,
            boundaries=False,
        ) as recorder,
    ):
        stops, tell = should_stop or _never, progress or _nobody
        ends = None if segment_tokens is not None else SegmentEnds(files, limit)
        surveyor = _Surveyor(opened, recorder, room=room, limit=limit, ends=ends, should_stop=stops, progress=tell)
        for one in files:
            interrupted = stops() or not surveyor.record(one)
            if interrupted:
                break
            finished += 1
        # Those after the one that was interrupted may have been finished before.
        for one in files[finished:]:
            finished += recorder.recording.progress(one.name).done
    run = recorder.recording.run
    with ProfileDatabase(where) as database:
        segments = database.group_segments(run.identity)
    return Survey(
        profile=recorder.recording.database.name,
        model=run.model,
        identity=run.identity,
        run=run.uuid,
        label=run.label,
        files=len(files),
        finished=finished,
        interrupted=interrupted,
        tokens=tuple(sorted(recorder.tokens.items())),
        too_few=tuple(
            (group, segments.get(group, 0))
            for group in sorted(recorder.tokens)
            if segments.get(group, 0) < LEAST_SEGMENTS
        ),
    )


def _never() -> bool:
    return False


def _nobody(nbytes: int) -> None:
    """Is told of progress where nobody wants to know."""


def _room(opened: OpenModel, context: int | None, limit: int | None) -> int:
    """Tokens of a text in a window, beside the one that the tokenizer begins every text with."""
    model, config = opened.model, opened.model.config
    if getattr(config, "is_encoder_decoder", False) or {bank.component for bank in opened.runtime.banks} == {"talker"}:
        raise UnsupportedError(
            f"{type(model).__name__} does not read texts and go on with them.",
            advice="Record what it generates: model.coterie.record_profile.",
        )
    longest = model_context(config)
    tokens = min(DEFAULT_CONTEXT, longest or DEFAULT_CONTEXT) if context is None else context
    if longest is not None and tokens > longest:
        raise UsageError(
            f"context={tokens} is more than the {longest} tokens that the model was made for.", got=tokens, most=longest
        )
    room = tokens - len(beginning(opened.processors.tokenizer))
    for name, value in (("context", room), ("limit", 1 if limit is None else limit)):
        if value < 1:
            raise UsageError(f"{name} is too small: no token is left.", got=context if name == "context" else limit)
    return room


class _Surveyor:
    """Records one file after another."""

    def __init__(
        self,
        opened: OpenModel,
        recorder: ProfileRecorder,
        *,
        room: int,
        limit: int | None,
        ends: SegmentEnds | None,
        should_stop: Callable[[], bool],
        progress: Callable[[int], None],
    ) -> None:
        self._model: Any = opened.model
        self._processors = opened.processors
        self._recorder = recorder
        self._recording = recorder.recording
        self._prefix = beginning(opened.processors.tokenizer)
        self._room = room
        self._limit = limit
        self._ends = ends
        self._should_stop = should_stop
        self._progress = progress
        # That of an instance, which may take more than its class's.
        takes = inspect.signature(self._model.forward).parameters
        # No logits are wanted; those of the last token are the fewest there are.
        self._options = {"use_cache": False} | ({"logits_to_keep": 1} if "logits_to_keep" in takes else {})

    def record(self, one: Material) -> bool:
        """Records what is left of a file; False if it was stopped in its middle."""
        self._recorder.domain = one.domain
        if self._recording.progress(one.name).done:
            self._progress(one.nbytes)
            return True
        try:
            if one.kind == "text":
                return self._record_text(one)
            self._record_medium(one)
        except CoterieError as error:
            if str(one.path) in error.message:
                raise
            raise type(error)(f"{one.path}: {error.message}", advice=error.advice, **error.facts) from error
        return True

    def _record_medium(self, one: Material) -> None:
        audios, images = ([one.path] if one.kind == kind else [] for kind in ("speech", "images"))
        inputs = build_inputs(self._processors, "", images=images, audios=audios)
        self._model(**inputs.to(self._model.dtype), **self._options)
        self._mark(one, 1, done=True)
        self._progress(one.nbytes)

    def _record_text(self, one: Material) -> bool:
        counted, before = self._recording.progress(one.name).position, 0
        earlier = told = 0
        for part in text_parts(one.path):
            ids = encode_text(self._processors.tokenizer, part)
            nbytes = len(part.encode("utf-8"))
            # One more than there are: nothing is asked about the last token, and it is to be counted, too.
            for window in plan_windows(len(ids) + 1, self._room):
                end = before + window.inputs.stop
                if self._limit is not None:
                    end = min(end, self._limit)
                begin = max(before + window.inputs.start, counted)
                if begin < end:
                    if self._should_stop():
                        return False
                    self._read(ids[begin - before : end - before])
                    self._mark(one, end)
                done = earlier + nbytes * window.inputs.stop // len(ids)
                self._progress(done - told)
                told = done
                if end == self._limit:
                    self._progress(max(0, one.nbytes - told))
                    return True
            before, earlier = before + len(ids), earlier + nbytes
        self._mark(one, before, done=True)
        self._progress(max(0, one.nbytes - told))
        return True

    def _mark(self, one: Material, position: int, *, done: bool = False) -> None:
        ends = self._ends is not None and self._ends.after(one, self._recording.tokens, finished=done)
        self._recording.mark(one.name, position, done=done, ends_segment=ends)
        if self._ends is not None and not self._recording.tokens:
            self._ends.ended()

    def _read(self, ids: list[int]) -> None:
        tokens = torch.tensor([[*self._prefix, *ids]], dtype=torch.int64)
        self._model(input_ids=tokens, **self._options)

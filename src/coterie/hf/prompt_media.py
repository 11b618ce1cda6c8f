"""Pictures, sounds and videos of a prompt, told apart: where each one is, and what the model is given of it.

A prompt that is computed in several passes needs each of them in the pass that computes its placeholder tokens. And two
prompts with the same placeholder tokens are the same only if they show the same pictures.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FAMILIES = ("qwen3_vl_moe", "qwen3_omni_moe_thinker")
"""Model types whose media are known to be taken in any pass, with positions that were made before."""
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_WITHHELD = ("pixel_values", "input_features", "pixel_values_videos")
"""What the encoders of a medium compute with; the rest says how large it is."""
_PICTURES = frozenset({"pixel_values", "image_grid_thw"})
_SOUNDS = frozenset({"input_features", "feature_attention_mask"})
_VIDEOS = frozenset({"pixel_values_videos", "video_grid_thw", "video_second_per_grid"})
_HEARD = "use_audio_in_video"
"""Says that videos have their sound's tokens among their own."""

_Run = tuple[int, int]
"""The first of some tokens, and the one after them."""
_Told = tuple[_Run, dict[str, Tensor]]
"""Where a medium is, and what the model is given of it."""


@dataclass(frozen=True, slots=True)
class Medium:
    """A picture, a sound, or a video with its sound.

    Attributes:
        begin: Where its placeholder tokens begin.
        end: The token after them.
        digest: Tells it from every other one.
        inputs: What the model is given of it.
    """

    begin: int
    end: int
    digest: bytes
    inputs: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Media:
    """All of a prompt, in order.

    Attributes:
        each: The pictures, sounds and videos.
    """

    each: tuple[Medium, ...] = ()

    def after(self, position: int) -> int:
        """The position, or where the medium ends that it is within."""
        return next((one.end for one in self.each if one.begin < position < one.end), position)

    def within(self, begin: int, end: int) -> tuple[Medium, ...]:
        """Those of some tokens."""
        return tuple(one for one in self.each if begin <= one.begin and one.end <= end)

    def inputs(self, begin: int, end: int) -> dict[str, Tensor]:
        """What a pass over some tokens is given besides them."""
        merged: dict[str, list[Tensor]] = {}
        for one in self.within(begin, end):
            for name, value in one.inputs.items():
                merged.setdefault(name, []).append(value)
        return {name: torch.cat(values) for name, values in merged.items()}

    def prepared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of the whole prompt without what passes are given piece by piece."""
        return {name: value for name, value in inputs.items() if not self.each or name not in _WITHHELD}


def media_of(config: Any, inputs: Mapping[str, Any]) -> Media | None:
    """The pictures, sounds and videos of a prompt.

    Args:
        config: Of the model.
        inputs: What its forward takes, a batch of one.

    Returns:
        None if there is something beside text that cannot be told apart.
    """
    others = {name for name, value in inputs.items() if name not in _OF_TEXT and value is not None}
    if not others:
        return Media()
    if getattr(config, "model_type", None) not in _FAMILIES:
        return None
    ids = inputs["input_ids"][0]
    given = _Given(config, ids, inputs)
    found: list[Medium] | None = []
    if others - {*_PICTURES, *_SOUNDS, *_VIDEOS, _HEARD}:
        return None
    for kind, told_apart in ((_PICTURES, given.pictures), (_VIDEOS, given.videos), (_SOUNDS, given.sounds)):
        if found is not None and others & kind:
            more = told_apart()
            found = None if more is None else [*found, *more]
    return None if found is None else Media(tuple(sorted(found, key=lambda one: one.begin)))


class _Given:
    """What a prompt of one model is given; of each kind, which part belongs to which placeholders.

    Args:
        config: Of the model.
        ids: The tokens, int64 [T].
        inputs: What its forward takes.
    """

    def __init__(self, config: Any, ids: Tensor, inputs: Mapping[str, Any]) -> None:
        self._config = config
        self._ids = ids
        self._inputs = inputs
        self._heard = bool(inputs.get(_HEARD))

    def pictures(self) -> list[Medium] | None:
        """Each with its values; None if they cannot be told apart."""
        return _media(self._seen("pixel_values", "image_grid_thw", _runs(self._ids, self._config.image_token_id)))

    def videos(self) -> list[Medium] | None:
        """Likewise, with its sound where that is heard."""
        seconds = self._inputs.get("video_second_per_grid")
        found = self._seen("pixel_values_videos", "video_grid_thw", self._video_runs)
        if found is None or (seconds is not None and len(seconds) != len(found)):
            return None
        made = []
        for number, ((begin, end), inputs) in enumerate(found):
            if seconds is not None:
                inputs["video_second_per_grid"] = seconds[number : number + 1]
            if self._heard:
                within = [heard for run, heard in self._sounds or () if begin <= run[0] < end]
                if len(within) != 1:
                    return None
                inputs |= within[0]
            made.append(((begin, end), inputs))
        return _media(made)

    def sounds(self) -> list[Medium] | None:
        """Those that belong to no video."""
        found = self._sounds
        if found is not None and self._heard:
            videos = self._video_runs
            found = [one for one in found if not any(begin <= one[0][0] < end for begin, end in videos)]
        return _media(found)

    @functools.cached_property
    def _video_runs(self) -> list[tuple[int, int]]:
        """Where videos are: their groups of frames may have text between them, or tokens of sound."""
        grids = self._inputs.get("video_grid_thw")
        runs = _runs(self._ids, getattr(self._config, "video_token_id", None))
        if grids is None:
            return runs
        merge = int(self._config.vision_config.spatial_merge_size) ** 2
        wanted = iter([int(grid.prod()) // merge for grid in grids])
        whole: list[tuple[int, int]] = []
        first, count = None, 0
        left = next(wanted, None)
        for begin, end in runs:
            first = begin if first is None else first
            count += end - begin
            if count == left:
                whole.append((first, end))
                first, count, left = None, 0, next(wanted, None)
        if not self._heard:
            return whole
        return [self._with_sound(begin, end) for begin, end in whole]

    def _with_sound(self, begin: int, end: int) -> tuple[int, int]:
        """A video from the first to the last of its tokens and those of its sound, which stand among and behind."""
        sound = self._config.audio_token_id
        while begin > 0 and int(self._ids[begin - 1]) == sound:
            begin -= 1
        while end < len(self._ids) and int(self._ids[end]) == sound:
            end += 1
        return begin, end

    @functools.cached_property
    def _sounds(self) -> list[_Told] | None:
        """All, each from its first to its last token: those of a video's sound have frames between them."""
        runs = _runs(self._ids, self._config.audio_token_id)
        if self._heard:
            merged: list[tuple[int, int]] = []
            for begin, end in self._video_runs:
                inside = [run for run in runs if begin <= run[0] < end]
                merged += [(inside[0][0], inside[-1][1])] if inside else []
                runs = [run for run in runs if run not in inside]
            runs = sorted([*runs, *merged])
        return _sounds(self._inputs, runs)

    def _seen(self, values: str, grids: str, runs: list[_Run]) -> list[_Told] | None:
        patches, sizes = self._inputs.get(values), self._inputs.get(grids)
        if patches is None or sizes is None or len(sizes) != len(runs):
            return None
        counts = [int(grid.prod()) for grid in sizes]
        if sum(counts) != patches.shape[0]:
            return None
        parts = zip(runs, patches.split(counts), sizes.split(1), strict=True)
        return [(run, {values: value, grids: grid}) for run, value, grid in parts]


def _runs(ids: Tensor, token: int | None) -> list[tuple[int, int]]:
    """Where a token stands, once or several times in a row."""
    places = [] if token is None else (ids == token).nonzero().flatten().tolist()
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def _sounds(inputs: Mapping[str, Any], runs: list[_Run]) -> list[_Told] | None:
    features, masks = inputs.get("input_features"), inputs.get("feature_attention_mask")
    if features is None or masks is None or not len(features) == len(masks) == len(runs):
        return None
    parts = zip(runs, features.split(1), masks.split(1), strict=True)
    return [(run, {"input_features": one, "feature_attention_mask": mask}) for run, one, mask in parts]


def _media(told: list[_Told] | None) -> list[Medium] | None:
    return None if told is None else [_medium(run, inputs) for run, inputs in told]


def _medium(run: _Run, inputs: dict[str, Tensor]) -> Medium:
    digest = hashlib.sha256()
    for name, value in inputs.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return Medium(*run, digest.digest(), inputs)

"""Pictures and sounds of a prompt, told apart: where each one is, and what the model is given of it.

A prompt that is computed in several passes needs each of them in the pass that computes its placeholder tokens. And two
prompts with the same placeholder tokens are the same only if they show the same pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FAMILIES = ("qwen3_vl_moe", "qwen3_omni_moe_thinker")
"""Model types whose media are known to be taken in any pass, with positions that were made before."""
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_WITHHELD = ("pixel_values", "input_features")
"""What the encoders of a medium compute with; the rest says how large it is."""


@dataclass(frozen=True, slots=True)
class Medium:
    """A picture or sound.

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
        each: The pictures and sounds.
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
    """The pictures and sounds of a prompt.

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
    found: list[Medium] = []
    if others & {"pixel_values", "image_grid_thw"}:
        pictures = _pictures(inputs, _runs(ids, config.image_token_id))
        if pictures is None:
            return None
        found += pictures
    if others & {"input_features", "feature_attention_mask"}:
        sounds = _sounds(inputs, _runs(ids, config.audio_token_id))
        if sounds is None:
            return None
        found += sounds
    if others - {"pixel_values", "image_grid_thw", "input_features", "feature_attention_mask"}:
        return None
    return Media(tuple(sorted(found, key=lambda one: one.begin)))


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


def _pictures(inputs: Mapping[str, Any], runs: list[tuple[int, int]]) -> list[Medium] | None:
    values, grids = inputs.get("pixel_values"), inputs.get("image_grid_thw")
    if values is None or grids is None or len(grids) != len(runs):
        return None
    counts = [int(grid.prod()) for grid in grids]
    if sum(counts) != values.shape[0]:
        return None
    parts = zip(runs, values.split(counts), grids.split(1), strict=True)
    return [_medium(run, {"pixel_values": value, "image_grid_thw": grid}) for run, value, grid in parts]


def _sounds(inputs: Mapping[str, Any], runs: list[tuple[int, int]]) -> list[Medium] | None:
    features, masks = inputs.get("input_features"), inputs.get("feature_attention_mask")
    if features is None or masks is None or not len(features) == len(masks) == len(runs):
        return None
    parts = zip(runs, features.split(1), masks.split(1), strict=True)
    return [_medium(run, {"input_features": one, "feature_attention_mask": mask}) for run, one, mask in parts]


def _medium(run: tuple[int, int], inputs: dict[str, Tensor]) -> Medium:
    digest = hashlib.sha256()
    for name, value in inputs.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return Medium(*run, digest.digest(), inputs)

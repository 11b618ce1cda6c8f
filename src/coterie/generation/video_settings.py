"""How models of the Qwen-VL kind want videos: which frames, in what size, with what values.

The rules are those of transformers' video processors, which need torchvision: ``video_processing_qwen2_vl.py`` and
``video_processing_qwen3_vl.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from coterie.errors import InputError, LoadError
from coterie.files.json_text import read_json_object
from coterie.generation.containers import VideoFacts
from coterie.generation.video_options import VideoOptions

Rule = Literal["frame", "clip"]
"""Whether limits of pixels are those of each frame (Qwen2-VL, Qwen3-Omni) or of all together (Qwen3-VL)."""

_BICUBIC = 3
_STEEPEST = 200
"""The most that a frame may be longer than wide, or wider than long."""
_USUAL_SIZE = (128 * 32 * 32, 768 * 32 * 32)
"""The least and the most pixels, where a file does not say. Qwen3-Omni's processor passes them on whatever it says."""
_DEFAULTS: dict[Rule, dict[str, Any]] = {
    "frame": {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711),
              "patch_size": 14},
    "clip": {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5), "patch_size": 16},
}  # fmt: skip
_CLASS_OF: dict[Rule, str] = {"frame": "Qwen2VLVideoProcessor", "clip": "Qwen3VLVideoProcessor"}
_AS_THEY_ARE = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "do_center_crop": False,
    "do_pad": False, "resample": _BICUBIC, "cap_pixels_per_frame": False,
}  # fmt: skip
"""Settings that have one value in all released models, and what that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSettings:
    """What a model's video processor does.

    Attributes:
        rule: What limits of pixels are of.
        patch: Pixels of a patch along each side.
        merge: Patches that become one vector, along each side.
        temporal: Frames that become one.
        fps: Frames per second that are taken.
        fewest: Frames that are taken at the least.
        most: And at the most.
        pixels: The least and the most pixels, by :attr:`rule`.
        mean: Of red, green and blue, subtracted from values in [0, 1].
        std: Likewise, what these are divided by.
        rescale: What a value of 8 bits is multiplied with.
    """

    rule: Rule
    patch: int
    merge: int
    temporal: int
    fps: float
    fewest: int
    most: int
    pixels: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float

    @property
    def edge(self) -> int:
        """Pixels of what becomes one vector, along each side."""
        return self.patch * self.merge

    def chosen(self, facts: VideoFacts, options: VideoOptions) -> list[int]:
        """The numbers of the frames that the model is shown, in ascending order.

        Raises:
            InputError: If more were asked for than there are.
        """
        if options.frames is not None and options.frames > facts.frames:
            raise InputError(
                f"{options.frames} frames of the video were asked for, and it has {facts.frames}.",
                advice="Ask for fewer.",
                expected=options.frames,
                got=facts.frames,
            )
        fps = self.fps if options.fps is None else options.fps
        chosen = self._by_frame(facts, fps, options) if self.rule == "frame" else self._by_clip(facts, fps, options)
        # A clip has as many frames as become one, at the least.
        return chosen if self.rule == "frame" else chosen + chosen[-1:] * (self.temporal - len(chosen))

    def _by_frame(self, facts: VideoFacts, fps: float, options: VideoOptions) -> list[int]:
        total, step = facts.frames, self.temporal
        if options.frames is not None:
            count = round(options.frames / step) * step
        else:
            most = math.floor(min(self.most, total) / step) * step
            wanted = min(max(total / facts.rate * fps, self.fewest), most, total)
            count = math.floor(wanted / step) * step
        if count < 1 or count > total:
            count = min(total, step)
        import torch

        numbers: list[int] = torch.arange(0, total, total / count).int().tolist()
        return numbers

    def _by_clip(self, facts: VideoFacts, fps: float, options: VideoOptions) -> list[int]:
        total = facts.frames
        count = options.frames
        if count is None:
            count = min(max(int(total / facts.rate * fps), self.fewest), self.most, total)
        numbers: list[int] = np.linspace(0, total - 1, count).round().astype(int).tolist()
        return numbers

    def size(self, frames: int, height: int, width: int, options: VideoOptions) -> tuple[int, int]:
        """Height and width of a frame as the model is shown it.

        Args:
            frames: How many are shown.
            height: Pixels of a frame as it is.
            width: Likewise.
            options: Of the user.

        Raises:
            InputError: If it is too long or wide.
        """
        least, most = self.pixels
        share = frames if self.rule == "clip" else 1
        if options.pixels is not None:
            most = min(most, max(options.pixels, self.edge**2) * share)
            least = min(least, most)
        edge = self.edge
        if self.rule == "clip" and (height < edge or width < edge):
            scale = max(edge / height, edge / width)
            height, width = int(height * scale), int(width * scale)
        if max(height, width) > _STEEPEST * min(height, width):
            raise InputError(
                f"Frames of {width} × {height} pixels are more than {_STEEPEST} times as long as wide.",
                advice="Cut it.",
            )
        # As in the video processors, a clip's frames are counted in whole groups where its size is compared.
        groups = round(frames / self.temporal) * self.temporal if self.rule == "clip" else 1
        rows, columns = round(height / edge) * edge, round(width / edge) * edge
        if groups * rows * columns > most:
            beta = math.sqrt(share * height * width / most)
            return max(edge, math.floor(height / beta / edge) * edge), max(edge, math.floor(width / beta / edge) * edge)
        if groups * rows * columns < least:
            beta = math.sqrt(least / (share * height * width))
            return math.ceil(height * beta / edge) * edge, math.ceil(width * beta / edge) * edge
        return rows, columns


def video_settings(path: Path, rule: Rule, *, omni: bool) -> VideoSettings:
    """Reads what the video processor of a model directory does. Its files have been checked.

    Args:
        path: The directory.
        rule: What limits of pixels are of, by the family of the model.
        omni: Whether it is a Qwen3-Omni.

    Raises:
        LoadError: If a file cannot be read, or asks for what no released model does.
    """
    file, values = _file_of(path)
    kind = values.get("video_processor_type")
    if kind is not None and kind != _CLASS_OF[rule]:
        raise _other(file, "video_processor_type", kind, _CLASS_OF[rule])
    for key, expected in _AS_THEY_ARE.items():
        if (got := values.get(key)) is not None and got != expected:
            raise _other(file, key, got, expected)
    values = {**_DEFAULTS[rule], **{key: value for key, value in values.items() if value is not None}}
    made = VideoSettings(
        rule=rule,
        patch=_whole(file, values, "patch_size", 16),
        merge=_whole(file, values, "merge_size", 2),
        temporal=_whole(file, values, "temporal_patch_size", 2),
        fps=_number(file, values, "fps", 2.0),
        fewest=_whole(file, values, "min_frames", 4),
        most=_whole(file, values, "max_frames", 768),
        pixels=_USUAL_SIZE if omni else _sizes(file, values),
        mean=_three(file, values, "image_mean"),
        std=_three(file, values, "image_std"),
        rescale=_number(file, values, "rescale_factor", 1 / 255),
    )
    return made if made.fps > 0 else replace(made, fps=2.0)


def _file_of(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file that the video processor's settings are in, and these: transformers looks in the same order."""
    for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        try:
            values = read_json_object(path / name, error=LoadError, advice="Download it again.")
        except FileNotFoundError:
            continue
        if name != "processor_config.json":
            return path / name, values
        if isinstance(own := values.get("video_processor"), dict):
            return path / name, own
    raise LoadError(
        f"{path} has no settings of a video processor.", advice="Download video_preprocessor_config.json.", path=path
    )


def _sizes(file: Path, values: Mapping[str, Any]) -> tuple[int, int]:
    size = values.get("size")
    size = size if isinstance(size, dict) else {}
    found = []
    for key, default in zip(("shortest_edge", "longest_edge"), _USUAL_SIZE, strict=True):
        found.append(_whole(file, size, key, default))
    return found[0], found[1]


def _whole(file: Path, values: Mapping[str, Any], key: str, default: int) -> int:
    value = values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _other(file, key, value, "a whole number above 0")
    return value


def _number(file: Path, values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _other(file, key, value, "a number")
    return float(value)


def _three(file: Path, values: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = values.get(key)
    numbers = value if isinstance(value, list | tuple) else ()
    if len(numbers) != 3 or not all(isinstance(one, int | float) and math.isfinite(one) for one in numbers):
        raise _other(file, key, value, "three numbers")
    if key == "image_std" and 0 in numbers:
        raise _other(file, key, value, "three numbers that are not 0")
    return tuple(float(one) for one in numbers)


def _other(file: Path, key: str, got: object, expected: object) -> LoadError:
    return LoadError(
        f"{key} in {file} is {str(got)[:60]!r}; videos are prepared with {expected!r} only.",
        advice="Download the file again, or pass frames as pictures.",
        path=file,
        key=key,
        got=got,
    )

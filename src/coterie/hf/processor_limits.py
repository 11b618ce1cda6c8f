"""What the files of image processors and feature extractors may ask for, found out before a library loads them.

They say at what size pictures and sounds are prepared; a few digits ask for terabytes. The limits are far beyond what
any released model needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coterie.errors import LoadError
from coterie.files.json_text import read_json_object

FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
MOST_PIXELS = 2**25
"""Pixels at which one picture is prepared: some 400 MB as numbers."""
_LEAST_PIXELS = 2**22
"""The most pixels that a small picture may be scaled up to: tens of thousands of tokens come of it already."""
_EDGE = 16_384
_MOST_FILTERS = 2**23
"""Numbers in the table of mel filters."""
_MOST_FRAMES_PER_SECOND = 2_000

_LIMITS: dict[str, tuple[float, float]] = {
    "height": (1, _EDGE), "width": (1, _EDGE), "max_height": (1, _EDGE), "max_width": (1, _EDGE),
    "size": (1, _EDGE), "crop_size": (1, _EDGE), "pad_size": (1, _EDGE), "image_size": (1, _EDGE),
    "min_pixels": (1, _LEAST_PIXELS), "max_pixels": (1, 2**63), "shortest_edge": (1, _LEAST_PIXELS),
    "longest_edge": (1, 2**63), "patch_size": (1, 512), "merge_size": (1, 64), "spatial_merge_size": (1, 64),
    "temporal_patch_size": (1, 64), "pooling_kernel_size": (1, 64), "size_divisor": (1, 1024),
    "num_frames": (1, 2**20), "min_frames": (1, 2**20), "max_frames": (1, 2**24), "fps": (0, 1000),
    "max_image_tiles": (1, 1024), "max_num_tiles": (1, 1024), "max_patches": (1, 2**16), "min_patches": (0, 2**16),
    "num_image_tokens": (1, 2**20), "image_seq_length": (1, 2**20), "image_seq_len": (1, 2**20),
    "audio_seq_length": (1, 2**20), "feature_size": (1, 4096), "num_mel_bins": (1, 4096), "n_mels": (1, 4096),
    "n_fft": (1, 65_536), "fft_length": (1, 65_536), "hop_length": (1, 65_536), "win_length": (1, 65_536),
    "frame_length": (1, 65_536), "chunk_length": (1, 86_400), "sampling_rate": (1000, 768_000), "n_samples": (1, 2**30),
    "nb_max_frames": (1, 2**26), "max_length": (1, 2**30), "padding_value": (-1e9, 1e9), "rescale_factor": (0, 1e6),
    "dither": (0, 1e3),
}  # fmt: skip
"""By name: the least and the most that a number may be, wherever in a file it stands."""


def check_processor_files(directory: Path) -> None:
    """Refuses files of processors that ask for more than any model needs.

    Args:
        directory: A model directory.

    Raises:
        LoadError: If one cannot be read, or a number in it is beyond the limits. Facts ``path`` and ``key``.
    """
    for name in FILES:
        path = directory / name
        try:
            values = read_json_object(path, error=LoadError, advice="Download it again.")
        except FileNotFoundError:
            continue
        for scope in _scopes(values):
            _check_scope(path, scope)


def _scopes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a file, itself included."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            yield one
            stack += one.values()
        elif isinstance(one, list):
            stack += one


def _check_scope(path: Path, values: Mapping[str, Any]) -> None:
    for key, (low, high) in _LIMITS.items():
        value = values.get(key)
        if value is None or isinstance(value, dict | list | bool):
            continue
        if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
            raise _beyond(path, key, value, f"a number from {low:,} to {high:,}")
    if "longest_edge" not in values and _number(values, "shortest_edge", 0) > _EDGE:
        raise _beyond(path, "shortest_edge", values["shortest_edge"], f"a number from 1 to {_EDGE:,}")
    for one, other in (("height", "width"), ("max_height", "max_width")):
        if _number(values, one, 0) * _number(values, other, 0) > MOST_PIXELS:
            raise _beyond(path, one, values[one], f"at most {MOST_PIXELS:,} pixels together with {other}")
    filters = _number(values, "n_fft", 400) * _number(values, "feature_size", 128)
    if filters > _MOST_FILTERS:
        raise _beyond(path, "n_fft", values.get("n_fft"), f"at most {_MOST_FILTERS:,} times feature_size")
    rate, hop = _number(values, "sampling_rate", 16_000), _number(values, "hop_length", 160)
    if rate / hop > _MOST_FRAMES_PER_SECOND:
        raise _beyond(path, "hop_length", hop, f"at least {math.ceil(rate / _MOST_FRAMES_PER_SECOND)} samples")


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def _beyond(path: Path, key: str, value: object, what: str) -> LoadError:
    shown = repr(value)
    return LoadError(
        f"{key} in {path} must be {what}, not {shown if len(shown) <= 60 else shown[:59] + '…'}.",
        advice="Download the file again, or mend it.",
        path=path,
        key=key,
        got=value,
    )

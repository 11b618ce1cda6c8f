"""Frames of a video as the values that encoders of the Qwen-VL kind compute with, equal to transformers' to the bit.

Frames are scaled and turned into patches as they are decoded: beside the values there is one group of frames at a time.
Shapes: H, W height and width of a frame; h, w likewise in patches; P patches of a group of frames.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from coterie.generation.containers import Frame
from coterie.generation.video_settings import VideoSettings
from coterie.spec import round_up

VALUE_NBYTES = 12
"""Bytes of values per pixel of a scaled frame: three colours in float32."""
_GROUP_NBYTES = 40
"""Bytes per pixel of a scaled frame while it is made, besides: it as it is, as floats, and rearranged."""


def values_nbytes(frames: int, height: int, width: int, settings: VideoSettings) -> int:
    """Bytes that the values of a video take while they are made.

    Args:
        frames: How many are shown.
        height: Pixels of a scaled frame.
        width: Likewise.
        settings: Of the model.
    """
    whole = round_up(frames, settings.temporal)
    return height * width * (whole * VALUE_NBYTES + settings.temporal * _GROUP_NBYTES)


def frame_values(
    frames: Iterable[Frame], count: int, height: int, width: int, settings: VideoSettings
) -> tuple[Tensor, Tensor]:
    """The values of a video.

    Args:
        frames: Frames, each uint8 [H, W, 3].
        count: How many they are.
        height: Pixels of a scaled frame.
        width: Likewise.
        settings: Of the model.

    Returns:
        ``pixel_values_videos`` float32 [patches, values of one] and ``video_grid_thw`` int64 [1, 3].
    """
    groups = -(-count // settings.temporal)
    grid = (groups, height // settings.patch, width // settings.patch)
    rows = grid[1] * grid[2]
    values = torch.empty(groups * rows, 3 * settings.temporal * settings.patch**2)
    group: list[Tensor] = []
    place = 0
    for frame in frames:
        group.append(_scaled(frame, height, width))
        if len(group) == settings.temporal:
            values[place : place + rows] = _patches(torch.stack(group), grid, settings)
            place, group = place + rows, []
    if group:
        group += group[-1:] * (settings.temporal - len(group))
        values[place : place + rows] = _patches(torch.stack(group), grid, settings)
    return values, torch.tensor([grid])


def _scaled(frame: Frame, height: int, width: int) -> Tensor:
    """A frame in another size, uint8 [3, height, width]: bicubic with antialiasing, as torchvision scales it."""
    # A copy: what comes from the decoder must not be written to.
    made = torch.from_numpy(np.array(frame)).permute(2, 0, 1).contiguous()
    if made.shape[-2:] == (height, width):
        return made
    scaled: Tensor = torch.nn.functional.interpolate(
        made[None], size=[height, width], mode="bicubic", align_corners=False, antialias=True
    )
    return scaled[0]


def _patches(group_T3HW: Tensor, grid: tuple[int, int, int], settings: VideoSettings) -> Tensor:
    """A group of frames as patches [P, values of one], normalised."""
    # The order of these operations decides about the last bits.
    mean = torch.tensor(settings.mean) * (1.0 / settings.rescale)
    std = torch.tensor(settings.std) * (1.0 / settings.rescale)
    values = group_T3HW.to(torch.float32).sub_(mean[:, None, None]).div_(std[:, None, None])
    merge, patch = settings.merge, settings.patch
    parts = values.view(
        settings.temporal, 3, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
    )  # t, colour, h, merge, patch, w, merge, patch
    return parts.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(grid[1] * grid[2], -1)

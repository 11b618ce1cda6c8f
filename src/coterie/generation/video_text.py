"""What stands for a video in a prompt of a Qwen-VL-like model.

Qwen3-Omni has one token for each feature vector. If it hears the sound, the sound's tokens are among them, each where
it is heard. Qwen3-VL says the time of each group of frames before its tokens. The rules are those of transformers'
processors (``processing_qwen3_omni_moe.py``, ``processing_qwen3_vl.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from coterie.generation.placeholders import MediaTokens

POSITIONS_PER_SECOND = 13.0
"""Positions that a second of a video has, as many as a second of sound: of Qwen3-Omni's processor."""

Grid = tuple[int, int, int]
"""Patches of a video in time, height and width."""


def silent_text(grid: Grid, merge: int, video: MediaTokens) -> str:
    """A video that is seen only, in a model that gives no times.

    Args:
        grid: Its patches.
        merge: Patches that become one vector, along each side.
        video: Tokens of videos.
    """
    return video.pad * (grid[0] * grid[1] * grid[2] // merge**2)


def heard_text(
    grid: Grid, merge: int, seconds: float, sound_tokens: int, video: MediaTokens, sound: MediaTokens
) -> str:
    """A video that is seen and heard: each group of frames comes when it is shown.

    Args:
        grid: Its patches.
        merge: Patches that become one vector, along each side.
        seconds: That a group of frames lasts.
        sound_tokens: Feature vectors of its sound, which lasts one position each.
        video: Tokens of videos.
        sound: Tokens of sounds.
    """
    each = (grid[1] // merge) * (grid[2] // merge)
    parts, heard = [sound.start], 0
    for group in range(grid[0]):
        begins = group * seconds * POSITIONS_PER_SECOND
        while heard < sound_tokens and heard < begins:
            parts.append(sound.pad)
            heard += 1
        parts.append(video.pad * each)
    parts += [sound.pad * (sound_tokens - heard), sound.end]
    return "".join(parts)


def timed_text(grid: Grid, merge: int, frames: Sequence[int], rate: float, temporal: int, video: MediaTokens) -> str:
    """A video whose groups of frames follow their times.

    Args:
        grid: Its patches.
        merge: Patches that become one vector, along each side.
        frames: The numbers of the frames that are shown.
        rate: Frames per second of the video.
        temporal: Frames that become one.
        video: Tokens of videos.
    """
    whole = [*frames, *[frames[-1]] * (-len(frames) % temporal)]
    times = [number / rate for number in whole]
    each = video.pad * (grid[1] * grid[2] // merge**2)
    return "".join(
        f"<{(times[first] + times[first + temporal - 1]) / 2:.1f} seconds>{video.start}{each}{video.end}"
        for first in range(0, len(times), temporal)
    )

"""Inputs of models of the Qwen-VL kind, put together from parts that need no torchvision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coterie.errors import InputError
from coterie.generation.decoding import DECODING
from coterie.generation.media_features import Video, picture_features, read_sounds, read_video, sound_features
from coterie.generation.media_files import MediaFiles
from coterie.generation.placeholders import (
    MediaTokens,
    expand,
    mentioned,
    picture_lengths,
    place_media,
    sound_lengths,
)
from coterie.generation.processors import Processors
from coterie.generation.sound import Samples
from coterie.generation.video_text import heard_text, silent_text, timed_text

if TYPE_CHECKING:
    from torch import Tensor

    Inputs = dict[str, Tensor]

SOUND_IN_VIDEO = "use_audio_in_video"
"""Says to a model that its videos have their sound's tokens among their own: of all videos of a prompt, or of none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """What is made of prompts and their media.

    Attributes:
        texts: The prompts, with a placeholder for each feature vector.
        features: What a model's forward takes besides.
    """

    texts: list[str]
    features: dict[str, Any]


def assemble(processors: Processors, texts: Sequence[str], media: MediaFiles) -> Assembled:
    """Makes the features of media, and puts as many placeholders into the prompts.

    Args:
        processors: Of a model of the Qwen-VL kind.
        texts: Prompts.
        media: Their files.

    Raises:
        InputError: If the model does not take such media, placeholders and files do not match, or a file cannot be
            used.
    """
    given = {"picture": (processors.pictures, media.images), "sound": (processors.sounds, media.audios),
             "video": (processors.videos, media.videos)}  # fmt: skip
    for kind, (tokens, files) in given.items():
        if files and tokens is None:
            raise InputError(f"A {processors.config.get('model_type')} model does not take {kind}s.")
    kinds = [(tokens, len(files)) for tokens, files in given.values() if tokens is not None]
    placed = place_media(texts, kinds)
    with DECODING:
        features: dict[str, Any] = {}
        shown: list[tuple[MediaTokens, list[str]]] = []
        if (pictures := processors.pictures) is not None:
            features |= picture_features(processors, media.images) if media.images else {}
            shown.append((pictures, _picture_texts(processors, pictures, features)))
        videos = [read_video(processors, path, media.options) for path in media.videos]
        heard = _check_heard(processors, videos, media)
        sounds = read_sounds(processors, processors.feature_extractor, media.audios) if media.audios else []
        order = mentioned(placed, [tokens for tokens, _ in kinds])
        together = _in_order(order, sounds, videos, heard=heard)
        features |= sound_features(processors, together) if together else {}
        features |= _video_features(processors, videos, heard=heard) if videos else {}
    lengths = iter(_sound_lengths(processors, features))
    sound_texts: list[str] = []
    video_texts: list[str] = []
    left = iter(videos)
    for kind in order:
        if kind == "sound" and processors.sounds is not None:
            sound_texts.append(processors.sounds.pad * next(lengths))
        elif kind == "video":
            video_texts.append(_video_text(processors, next(left), lengths if heard else None))
    shown += [(processors.sounds, sound_texts)] if processors.sounds is not None else []
    shown += [(processors.videos, video_texts)] if processors.videos is not None else []
    return Assembled(texts=expand(placed, shown), features=features)


def token_types(processors: Processors, ids: Tensor) -> Tensor:
    """What each token is of, int64 like the tokens: 1 a picture, 2 a video, 0 text."""
    import torch

    types = torch.zeros_like(ids)
    for kind, token in ((1, processors.picture_token), (2, processors.video_token)):
        if token is not None:
            types.masked_fill_(ids == token, kind)
    return types


def _picture_texts(processors: Processors, tokens: MediaTokens, features: Inputs) -> list[str]:
    grids = features.get("image_grid_thw")
    counts = [] if grids is None else picture_lengths(grids, processors.image_processor.merge_size)
    return [tokens.pad * count for count in counts]


def _check_heard(processors: Processors, videos: Sequence[Video], media: MediaFiles) -> bool:
    """Whether the sound of the videos is heard: models take it of all videos of a prompt, or of none."""
    wanted = media.options.sound
    if wanted and videos and processors.sounds is None:
        raise InputError(f"A {processors.config.get('model_type')} model does not hear videos.")
    silent = [video.path for video in videos if video.samples is None]
    if not videos or (len(silent) == len(videos) and not wanted):
        return False
    if silent:
        raise InputError(
            f"The video {silent[0]} has no sound"
            + (", and others have: this model hears all videos of a prompt, or none." if len(silent) < len(videos)
               else ", and it was asked for."),
            advice="Leave the sound of videos out: --no-video-sound, or VideoOptions(sound=False).",
            path=silent[0],
        )  # fmt: skip
    return True


def _in_order(
    order: Sequence[str], sounds: Sequence[Samples], videos: Sequence[Video], *, heard: bool
) -> list[Samples]:
    """All sounds, those of videos among them, in the order in which the prompts have their tokens."""
    alone, of_videos = iter(sounds), iter(videos)
    found: list[Samples | None] = []
    for kind in order:
        if kind == "sound":
            found.append(next(alone))
        elif kind == "video" and heard:
            found.append(next(of_videos).samples)
    return [one for one in found if one is not None]


def _sound_lengths(processors: Processors, features: Inputs) -> list[int]:
    mask = features.get("feature_attention_mask")
    return [] if mask is None else sound_lengths(mask.sum(-1), processors.n_window)


def _video_features(processors: Processors, videos: Sequence[Video], *, heard: bool) -> dict[str, Any]:
    import torch

    values = [video.values for video in videos]
    made: dict[str, Any] = {
        # One video's values are not copied: they may be most of what there is in memory.
        "pixel_values_videos": values[0] if len(values) == 1 else torch.cat(values),
        "video_grid_thw": torch.cat([video.grid for video in videos]),
    }
    if processors.sounds is not None:
        made["video_second_per_grid"] = torch.tensor([_group_seconds(processors, video) for video in videos])
    return made | ({SOUND_IN_VIDEO: True} if heard else {})


def _group_seconds(processors: Processors, video: Video) -> float:
    """Seconds that a group of frames stands for."""
    return processors.video_settings.temporal / video.shown_rate


def _video_text(processors: Processors, video: Video, sound_lengths: Iterator[int] | None) -> str:
    tokens, settings = processors.videos, processors.video_settings
    assert tokens is not None
    time, height, width = video.grid[0].tolist()
    grid = (time, height, width)
    if settings.rule == "clip":
        return timed_text(grid, settings.merge, video.frames, video.rate, settings.temporal, tokens)
    if sound_lengths is None:
        return silent_text(grid, settings.merge, tokens)
    assert processors.sounds is not None
    seconds = _group_seconds(processors, video)
    return heard_text(grid, settings.merge, seconds, next(sound_lengths), tokens, processors.sounds)

"""Inputs of models that are not of the Qwen-VL kind, made by their own processors in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from coterie.errors import InputError
from coterie.generation.containers import VideoFacts, check_room, decoding_nbytes, open_container
from coterie.generation.decoding import (
    DECODING,
    FULL_PROCESSOR_NBYTES,
    check_features,
    decoding,
    decoding_room,
    may_shrink,
)
from coterie.generation.media_features import facts_of, read_sound_for
from coterie.generation.media_files import MediaFiles
from coterie.generation.picture import read_picture
from coterie.generation.placeholders import MediaTokens, place_media
from coterie.generation.processors import Processors
from coterie.generation.sound import Samples
from coterie.generation.video_options import VideoOptions
from coterie.hf.foreign import foreign

if TYPE_CHECKING:
    from transformers import BatchFeature

_FPS = 2.0
"""Frames per second that are taken of a video where a processor would take all of them."""
_VISION = ("vision_bos_token", "vision_start_token"), ("vision_eos_token", "vision_end_token")
_BEFORE = {"image": _VISION[0], "video": _VISION[0], "audio": ("audio_bos_token",)}
_BEHIND = {"image": _VISION[1], "video": _VISION[1], "audio": ("audio_eos_token",)}
_FRAME_NBYTES = 3 + 3 * FULL_PROCESSOR_NBYTES
"""Bytes per pixel of a frame that a processor takes: the frame, and its values as floats, some times."""


def with_own_processor(
    processors: Processors, texts: Sequence[str], media: MediaFiles, *, add_special_tokens: bool
) -> BatchFeature:
    """What a model's own processor makes of prompts and their media.

    Args:
        processors: Of the model.
        texts: Prompts.
        media: Their files.
        add_special_tokens: Whether the tokenizer adds what it puts around every text.

    Raises:
        InputError: If the model does not take such media, torchvision is missing, or a file cannot be used.
    """
    full: Any = processors.full
    placed = place_media(texts, _kinds(processors, full, media))
    options: dict[str, Any] = {}
    if len(placed) > 1:
        options |= {"padding": True, "padding_side": "left"}
    # Processors have a tokenizer of their own, which they set up anew for each call.
    with DECODING, foreign(f"This input with {type(full).__name__}", processors.path, error=InputError, advice=None):
        room = _Room()
        if media.images:
            options["images"] = _pictures(media, room)
        if media.audios:
            options["audio"] = _sounds(processors, full.feature_extractor, media, room)
        if media.videos:
            options |= _videos(full.video_processor, media, room)
        return full(text=placed, return_tensors="pt", add_special_tokens=add_special_tokens, **options)


class _Room:
    """What decoding may take beside what is decoded already: a processor wants all media of a prompt at once."""

    def __init__(self) -> None:
        self._kept = 0

    @property
    def left(self) -> int | None:
        """Bytes; None for any number. Something is being decoded."""
        room = decoding_room()
        return None if room is None else max(0, room - self._kept)

    def keep(self, nbytes: int) -> None:
        """What was decoded takes so much until the processor has made values of it, these included."""
        self._kept += nbytes


def _kinds(processors: Processors, full: Any, media: MediaFiles) -> list[tuple[MediaTokens, int]]:
    """How prompts mention media: each by the processor's token for it, between those that it does not put there."""
    found = []
    for files, part, name, kind in (
        (media.images, "image_processor", "image", "picture"),
        (media.audios, "feature_extractor", "audio", "sound"),
        (media.videos, "video_processor", "video", "video"),
    ):
        token = getattr(full, f"{name}_token", None)
        if files and (getattr(full, part, None) is None or not isinstance(token, str)):
            raise InputError(f"A {processors.config.get('model_type')} model does not take {kind}s.")
        if isinstance(token, str):
            start, end = (_around(full, names) for names in (_BEFORE[name], _BEHIND[name]))
            found.append((MediaTokens(kind=kind, start=start, pad=token, end=end), len(files)))
    if media.options.sound and media.videos:
        raise InputError(f"A {processors.config.get('model_type')} model does not hear videos.")
    return found


def _around(full: Any, names: Sequence[str]) -> str:
    """A token that prompts have around a medium, by the names that models like Qwen's have for it; empty in others."""
    return next((one for one in (getattr(full, name, None) for name in names) if isinstance(one, str)), "")


def _pictures(media: MediaFiles, room: _Room) -> list[Any]:
    """Pictures for a processor that wants all at once, and takes about as much again for each."""
    pictures: list[Any] = []
    for path in media.images:
        with decoding():
            left = room.left
            picture = read_picture(path, room=None if left is None else left // 2, may_shrink=may_shrink())
            room.keep(picture.width * picture.height * FULL_PROCESSOR_NBYTES)
            pictures.append(picture)
    return pictures


def _sounds(processors: Processors, extractor: Any, media: MediaFiles, room: _Room) -> list[Samples]:
    """Sounds for a processor that wants all at once, with what their features will take."""
    sounds: list[Samples] = []
    for path in media.audios:
        with decoding():
            sounds.append(read_sound_for(processors, extractor, path, room.left))
            room.keep(sounds[-1].nbytes)
    with decoding():
        room.keep(check_features(sounds, room.left))
    return sounds


def _videos(processor: Any, media: MediaFiles, room: _Room) -> dict[str, Any]:
    """Frames of videos and what is known of them, as a processor takes them."""
    from transformers.video_utils import VideoMetadata

    clips, known = [], []
    for path in media.videos:
        with decoding():
            left = room.left
            with open_container(path, what="The video", room=left) as container:
                facts = facts_of(container)
                metadata = VideoMetadata(
                    total_num_frames=facts.frames, fps=facts.rate, width=facts.width, height=facts.height,
                    duration=facts.seconds, video_backend="pyav",
                )  # fmt: skip
                numbers = _chosen(processor, facts, metadata, media.options)
                nbytes = len(numbers) * facts.height * facts.width * _FRAME_NBYTES
                check_room(container.path, "The video", decoding_nbytes(facts) + nbytes, left)
                room.keep(nbytes)
                metadata.frames_indices = numbers
                clips.append(np.stack([np.array(frame) for frame in container.frames(numbers)]))
                known.append(metadata)
    return {"videos": clips, "videos_kwargs": {"video_metadata": known, "do_sample_frames": False}}


def _chosen(processor: Any, facts: VideoFacts, metadata: Any, options: VideoOptions) -> list[int]:
    """The frames that a processor takes of a video, in ascending order."""
    if options.pixels is not None:
        raise InputError("How large a frame is is this model's own choice.", advice="Leave --video-pixels out.")
    names = getattr(processor.valid_kwargs, "__annotations__", {})
    settings = {name: getattr(processor, name, None) for name in names}
    wanted = {name: settings.get(name) for name in ("fps", "num_frames")}
    if options.fps is not None or options.frames is not None:
        wanted = {"fps": options.fps, "num_frames": options.frames}
    elif not (getattr(processor, "do_sample_frames", None) and any(wanted.values())):
        wanted = {"fps": _FPS, "num_frames": None}
    if wanted["num_frames"] is not None and options.frames is None:
        wanted["num_frames"] = min(int(wanted["num_frames"]), facts.frames)
    if wanted["fps"] is not None:
        # Of a video that is slower, all frames.
        wanted["fps"] = min(float(wanted["fps"]), facts.rate)
    found = processor.sample_frames(metadata=metadata, **{**settings, **wanted})
    return sorted({min(max(0, int(number)), facts.frames - 1) for number in found})

"""Files of pictures, sounds and videos as what encoders of the Qwen-VL kind compute with, one file after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import InputError
from coterie.generation.containers import Container, check_room, decoding_nbytes, open_container
from coterie.generation.decoding import (
    DECODING,
    FULL_PROCESSOR_NBYTES,
    check_features,
    check_values,
    decoding,
    decoding_room,
    may_shrink,
    take_room,
)
from coterie.generation.picture import read_picture
from coterie.generation.sound import Samples, read_sound, sound_of
from coterie.generation.video_options import VideoOptions
from coterie.generation.video_values import frame_values, values_nbytes
from coterie.hf.foreign import foreign
from coterie.hf.processor_limits import MOST_PIXELS

if TYPE_CHECKING:
    from torch import Tensor

    from coterie.generation.processors import Processors

    Inputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """A video as a model is given it.

    Attributes:
        path: The file.
        values: float32 [patches, values of one].
        grid: int64 [1, 3], patches in time, height and width.
        frames: The numbers of its frames that are shown.
        rate: Frames per second that it has.
        shown_rate: Frames per second that are shown.
        samples: Its sound; None if that is not heard.
    """

    path: Path
    values: Tensor
    grid: Tensor
    frames: list[int]
    rate: float
    shown_rate: float
    samples: Samples | None


def picture_features(processors: Processors, images: Sequence[str | Path]) -> Inputs:
    """``pixel_values`` and ``image_grid_thw`` of pictures."""
    import torch

    # One by one: what a picture becomes is small beside what it is while it is decoded.
    found = [_one_picture(processors, path) for path in images]
    return {name: torch.cat([one[name] for one in found]) for name in ("pixel_values", "image_grid_thw")}


def _one_picture(processors: Processors, path: str | Path) -> Inputs:
    with decoding():
        room = decoding_room()
        # torchvision takes copies of a picture beside itself.
        left = room // 2 if room is not None and processors.with_torchvision else room
        picture = read_picture(path, room=left, may_shrink=may_shrink())
        with foreign(f"The picture {path} with the image processor", processors.path, error=InputError, advice=None):
            _check_pixels(processors.image_processor, picture, path)
            if processors.with_torchvision:
                check_room(Path(path), "The picture", picture.width * picture.height * FULL_PROCESSOR_NBYTES, room)
            picture = processors.scaled(picture)
            check_values(picture.width * picture.height, path, room)
            features = processors.image_processor(images=[picture], return_tensors="pt")
            take_room(features["pixel_values"].nbytes)
            return {"pixel_values": features["pixel_values"], "image_grid_thw": features["image_grid_thw"]}


def _check_pixels(processor: Any, picture: Any, path: str | Path) -> None:
    """Pictures are scaled to what the processor allows before memory for them is known; so it is looked at here."""
    size = processor.size
    pixels = min(max(picture.width * picture.height, size["shortest_edge"]), size["longest_edge"])
    edge = processor.patch_size * processor.merge_size
    if max(pixels, edge * edge) > MOST_PIXELS:
        raise InputError(
            f"The picture {path} would be prepared with {pixels:,} pixels; {MOST_PIXELS:,} are the most.",
            advice="Scale it down.",
            path=Path(path),
        )


def read_sounds(processors: Processors, extractor: Any, audios: Sequence[str | Path]) -> list[Samples]:
    """Sounds as a feature extractor takes them.

    Args:
        processors: Of the model.
        extractor: Its feature extractor.
        audios: Sound files.

    Raises:
        InputError: If one cannot be read, or is too long or too short for the model.
    """
    with DECODING:
        sounds: list[Samples] = []
        for path in audios:
            with decoding():
                room = decoding_room()
                left = None if room is None else max(0, room - sum(sound.nbytes for sound in sounds))
                sounds.append(read_sound_for(processors, extractor, path, left))
    return sounds


def read_sound_for(processors: Processors, extractor: Any, path: str | Path, room: int | None) -> Samples:
    """A sound as a feature extractor takes it; raises as :func:`read_sounds`."""
    limit = processors.max_seconds(extractor)
    sound = read_sound(path, rate=extractor.sampling_rate, max_seconds=limit, room=room)
    check_length(extractor, sound, path)
    return sound


def check_length(extractor: Any, sound: Samples, path: str | Path) -> None:
    """Refuses a sound that is too short: the spectrogram reflects half a window at each end."""
    shortest = int(getattr(extractor, "n_fft", 0)) // 2 + 1
    if len(sound) < shortest:
        raise InputError(
            f"The sound {path} is too short: {len(sound)} samples at {extractor.sampling_rate} Hz; the model's "
            f"features need {shortest}.",
            path=Path(path),
        )


def sound_features(processors: Processors, sounds: Sequence[Samples]) -> Inputs:
    """``input_features`` and ``feature_attention_mask`` of sounds."""
    extractor = processors.feature_extractor
    with DECODING, foreign("The sounds with the feature extractor", processors.path, error=InputError, advice=None):
        with decoding():
            check_features(sounds, decoding_room())
        features = extractor(
            list(sounds),
            sampling_rate=extractor.sampling_rate,
            padding=True,
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        # The name says whose mask it is: the text has one too.
        return {"input_features": features["input_features"], "feature_attention_mask": features["attention_mask"]}


def read_video(processors: Processors, path: str | Path, options: VideoOptions) -> Video:
    """A video as models of the Qwen-VL kind are given it.

    Args:
        processors: Of the model.
        path: The file.
        options: Which frames, how large, and whether the sound is heard.

    Raises:
        InputError: If it cannot be read, or is too much for the model or for memory.
    """
    path, settings = Path(path), processors.video_settings
    with decoding():
        room = decoding_room()
        with open_container(path, what="The video", room=room) as container:
            facts = facts_of(container)
            frames = settings.chosen(facts, options)
            height, width = settings.size(len(frames), facts.height, facts.width, options)
            tokens = -(-len(frames) // settings.temporal) * height * width // settings.edge**2
            check_tokens(processors, path, tokens)
            needed = decoding_nbytes(facts) + values_nbytes(len(frames), height, width, settings)
            check_room(path, "The video", needed, room)
            values, grid = frame_values(container.frames(frames), len(frames), height, width, settings)
            take_room(values.nbytes)
            # The frames have some of the room by now.
            samples = _sound_in(processors, container, options, decoding_room())
            if samples is not None:
                take_room(samples.nbytes)
    return Video(
        path=path,
        values=values,
        grid=grid,
        frames=frames,
        rate=facts.rate,
        shown_rate=len(frames) / facts.seconds,
        samples=samples,
    )


def facts_of(container: Container) -> Any:
    """What is known of a file that is to have frames."""
    if container.video is None:
        raise InputError(
            f"{container.path} has no frames to be seen.", advice="If it is a sound, pass it as one.",
            path=container.path,
        )  # fmt: skip
    return container.video


def check_tokens(processors: Processors, path: Path, tokens: int) -> None:
    """Refuses a video that has more tokens than the model has positions, before it is decoded."""
    positions = processors.positions
    if positions is not None and tokens > positions:
        raise InputError(
            f"The video {path} is {tokens:,} tokens for this model, which has room for {positions:,}.",
            advice="Show fewer frames, or smaller ones (--video-frames, --video-pixels).",
            path=path,
            tokens=tokens,
        )


def _sound_in(processors: Processors, container: Container, options: VideoOptions, room: int | None) -> Samples | None:
    """The sound of a video, if it is heard."""
    if options.sound is False or processors.sounds is None or not container.sound:
        return None
    extractor = processors.feature_extractor
    sound = sound_of(
        container, rate=extractor.sampling_rate, max_seconds=processors.max_seconds(extractor), room=room
    )  # fmt: skip
    if len(sound):
        check_length(extractor, sound, container.path)
    return sound if len(sound) else None

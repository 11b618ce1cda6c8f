"""The tokens that stand for a picture, a sound or a video in the text: how many, and where.

A Qwen-VL-like model wants one placeholder token per feature vector of its encoder. In a prompt a medium is written
once (``<|image_pad|>``, usually between its start and end tokens) and expanded here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from coterie.errors import InputError, UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaTokens:
    """The tokens of one kind of medium.

    Attributes:
        kind: ``picture``, ``sound`` or ``video``, for messages.
        start: Token before the medium; empty if the model's processor puts one there.
        pad: Token that is repeated once per feature vector.
        end: Token after the medium, likewise.
        replaced_whole: Whether what stands for a medium has tokens around it of its own, which take the place of these.
    """

    kind: str
    start: str
    pad: str
    end: str
    replaced_whole: bool = False

    @property
    def placeholder(self) -> str:
        """One medium as it is written in a prompt."""
        return f"{self.start}{self.pad}{self.end}"


def place_media(texts: Sequence[str], media: Sequence[tuple[MediaTokens, int]]) -> list[str]:
    """Puts media that the text does not mention in front of it.

    Args:
        texts: The prompts.
        media: Each kind with how many there are. Kinds that are put in front keep this order.

    Returns:
        The prompts, with exactly as many placeholders of each kind as there are media.

    Raises:
        InputError: If a kind is mentioned, but not as often as there are media, or if several prompts mention none, so
            that it is not known which prompt a medium belongs to.
    """
    front = ""
    for tokens, count in media:
        mentioned = sum(text.count(tokens.pad) for text in texts)
        if mentioned == count:
            continue
        if mentioned:
            raise InputError(
                f"The prompt mentions {mentioned} {tokens.kind}(s), but {count} were given.",
                advice=f"Write {tokens.placeholder} once per {tokens.kind}, or leave it out to have them put in front.",
                expected=mentioned,
                got=count,
            )
        if len(texts) > 1:
            raise InputError(
                f"{count} {tokens.kind}(s) were given for {len(texts)} prompts that mention none.",
                advice=f"Write {tokens.placeholder} where each one belongs.",
            )
        front += tokens.placeholder * count
    return [front + text for text in texts]


def mentioned(texts: Sequence[str], kinds: Sequence[MediaTokens]) -> list[str]:
    """The kinds of the media that prompts mention, in the order in which they do.

    Args:
        texts: The prompts.
        kinds: Those that are looked for.
    """
    by_pad = {tokens.pad: tokens.kind for tokens in kinds}
    if not by_pad:
        return []
    pattern = re.compile("|".join(map(re.escape, by_pad)))
    return [by_pad[found.group()] for text in texts for found in pattern.finditer(text)]


def expand(texts: Sequence[str], shown: Sequence[tuple[MediaTokens, Sequence[str]]]) -> list[str]:
    """Puts what stands for media in place of their placeholders.

    Args:
        texts: The prompts, with a placeholder for each medium (:func:`place_media`).
        shown: Each kind with what stands for its media, in order over all prompts.
    """
    if not shown:
        return list(texts)
    remaining = {tokens.pad: iter(media) for tokens, media in shown}
    whole = {tokens.placeholder: tokens.pad for tokens, _ in shown if tokens.replaced_whole}
    pattern = re.compile("|".join(map(re.escape, [*whole, *remaining])))
    # One pass, because what is put in place of a placeholder is made of placeholders.
    return [pattern.sub(lambda found: next(remaining[whole.get(found.group(), found.group())]), text) for text in texts]


def picture_lengths(grid_thw: Tensor, merge_size: int) -> list[int]:
    """Feature vectors of each picture.

    Args:
        grid_thw: int64 [pictures, 3], patches in time, height and width.
        merge_size: Patches that are merged to one vector, along each side.
    """
    return [int(grid.prod()) // merge_size**2 for grid in grid_thw]


@cache
def clips_are_replaced_whole() -> bool:
    """Whether Qwen3-VL's processor takes the tokens around a video away with its placeholder.

    Older releases of transformers do: each group of frames has such tokens of its own. Newer ones leave them there.
    """
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    return not hasattr(Qwen3VLProcessor, "replace_video_token")


def sound_lengths(frames: Tensor, n_window: int) -> list[int]:
    """Feature vectors that Qwen3-Omni's audio encoder makes of each sound.

    Args:
        frames: int64 [sounds], mel frames.
        n_window: Half the frames of one of the encoder's chunks, from the audio config.

    Raises:
        UnsupportedError: If the installed transformers cannot tell.
    """
    try:
        from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import _get_feat_extract_output_lengths
    except ImportError as error:
        raise UnsupportedError(
            "This release of transformers does not say how long Qwen3-Omni's audio features are.",
            advice="Install a release that Coterie was tested with (see the requirements).",
        ) from error
    # Older releases have the default window of 50 built in.
    takes_window = "n_window" in inspect.signature(_get_feat_extract_output_lengths).parameters
    if not takes_window and n_window != 50:
        raise UnsupportedError(
            f"This release of transformers supports audio encoders with n_window 50, not {n_window}."
        )
    lengths = _get_feat_extract_output_lengths(frames, *([n_window] if takes_window else []))
    return [int(length) for length in lengths]

"""The tokens that stand for a picture or a sound in the text: how many, and where.

A Qwen-VL-like model wants one placeholder token per feature vector of its encoder. In a prompt a medium is written
once (``<|image_pad|>``, usually between its start and end tokens) and expanded here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from coterie.errors import InputError, UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaTokens:
    """The tokens of one kind of medium.

    Attributes:
        kind: ``picture`` or ``sound``, for messages.
        start: Token before the medium.
        pad: Token that is repeated once per feature vector.
        end: Token after the medium.
    """

    kind: str
    start: str
    pad: str
    end: str

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


def expand(texts: Sequence[str], lengths: Sequence[tuple[MediaTokens, Sequence[int]]]) -> list[str]:
    """Places media (:func:`place_media`) and repeats each placeholder as often as its medium has feature vectors.

    Args:
        texts: The prompts.
        lengths: Each kind with the number of feature vectors of its media, in order over all prompts.

    Raises:
        InputError: If the placeholders do not fit the media.
    """
    if not lengths:
        return list(texts)
    texts = place_media(texts, [(tokens, len(counts)) for tokens, counts in lengths])
    remaining = {tokens.pad: iter(counts) for tokens, counts in lengths}
    pattern = re.compile("|".join(map(re.escape, remaining)))
    # One pass, because what is put in place of a placeholder is made of placeholders.
    return [pattern.sub(lambda found: found.group() * next(remaining[found.group()]), text) for text in texts]


def picture_lengths(grid_thw: Tensor, merge_size: int) -> list[int]:
    """Feature vectors of each picture.

    Args:
        grid_thw: int64 [pictures, 3], patches in time, height and width.
        merge_size: Patches that are merged to one vector, along each side.
    """
    return [int(grid.prod()) // merge_size**2 for grid in grid_thw]


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

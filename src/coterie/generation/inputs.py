"""From prompts, pictures, sounds and videos to what a model's forward takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import InputError
from coterie.generation.assembled import assemble, token_types
from coterie.generation.media_files import MediaFiles
from coterie.generation.own_processor import with_own_processor
from coterie.generation.placeholders import place_media
from coterie.generation.processors import Processors
from coterie.generation.video_options import VideoOptions
from coterie.hf.foreign import foreign
from coterie.hf.tokenizer import check_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BatchFeature

    Inputs = dict[str, Tensor]


def build_inputs(
    source: str | Path | Processors,
    text: str | Sequence[str],
    *,
    images: Sequence[str | Path] = (),
    audios: Sequence[str | Path] = (),
    videos: Sequence[str | Path] = (),
    video_options: VideoOptions | None = None,
    add_special_tokens: bool = True,
) -> BatchFeature:
    """Makes a model's inputs, the same as its processor in transformers would.

    Args:
        source: A model directory, or its :class:`Processors` where several prompts are made.
        text: A prompt, or several for a batch (padded on the left). Each file is mentioned once, in order, in the
            model's own tokens: ``<|vision_start|><|image_pad|><|vision_end|>`` for a picture,
            ``<|audio_start|><|audio_pad|><|audio_end|>`` for a sound, ``<|vision_start|><|video_pad|><|vision_end|>``
            for a video. Files of a kind that a single prompt does not mention are put in front of it: pictures, then
            sounds, then videos.
        images: Picture files.
        audios: Sound files: WAV, FLAC, Ogg, MP3 and others; with PyAV also M4A, AAC and the sound of videos.
        videos: Video files, which need PyAV: MP4, MOV, WebM, Matroska, AVI and others.
        video_options: Which frames of a video are shown, how large, and whether its sound is heard.
        add_special_tokens: Whether the tokenizer adds what it puts around every text; False for rendered chats.

    Returns:
        ``input_ids`` and ``attention_mask`` int64 [batch, tokens]; with pictures ``pixel_values`` float32 [patches,
        values] and ``image_grid_thw`` int64 [pictures, 3] (and ``mm_token_type_ids`` where the model wants them); with
        sounds ``input_features`` float32 [sounds, mel bins, frames] and ``feature_attention_mask`` [sounds, frames];
        with videos ``pixel_values_videos`` float32 [patches, values], ``video_grid_thw`` int64 [videos, 3] and, for
        Qwen3-Omni, ``video_second_per_grid`` float32 [videos] and ``use_audio_in_video`` if they are heard.
        ``.to(model.dtype)`` casts what is floating point, which models in older transformers releases need.

    Raises:
        InputError: If the prompt is empty, a file cannot be used, the model does not take such media, or placeholders
            and files do not match.
        LoadError: If the tokenizer or a processor cannot be loaded.
    """
    from transformers import BatchFeature

    processors = source if isinstance(source, Processors) else Processors(source)
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise InputError("There is no prompt.")
    texts = [
        check_text(one, "The prompt" if len(texts) == 1 else f"Prompt {number} of {len(texts)}")
        for number, one in enumerate(texts, 1)
    ]
    media = MediaFiles(
        images=tuple(images), audios=tuple(audios), videos=tuple(videos), options=video_options or VideoOptions()
    )
    if not media:
        kinds = [one for one in (processors.pictures, processors.sounds, processors.videos) if one is not None]
        place_media(texts, [(tokens, 0) for tokens in kinds])
        return BatchFeature(_tokenize(processors, texts, add_special_tokens))
    if processors.full is not None:
        return with_own_processor(processors, texts, media, add_special_tokens=add_special_tokens)
    return BatchFeature(_assembled(processors, texts, media, add_special_tokens))


def token_inputs(processors: Processors, ids: Sequence[int]) -> BatchFeature:
    """Makes a model's inputs of tokens that somebody else has made.

    Args:
        processors: Of the model.
        ids: The tokens of one prompt.

    Returns:
        ``input_ids`` and ``attention_mask`` int64 [1, tokens].

    Raises:
        InputError: If there are none, or the model has no row for one.
    """
    import torch
    from transformers import BatchFeature

    if not ids:
        raise InputError("The prompt is empty.", advice="Give the model at least one token to continue.")
    made = torch.tensor([list(ids)], dtype=torch.int64)
    if processors.embedding_rows is not None:
        check_ids(made, processors.tokenizer, processors.embedding_rows)
    return BatchFeature({"input_ids": made, "attention_mask": torch.ones_like(made)})


def check_text(text: str, what: str) -> str:
    """Returns a text that is one.

    What command lines and pipes bring along is decoded by the locale; bytes that this could not read are in it as
    halves of surrogate pairs. If they are UTF-8 after all, as in the C locale, they are read so.

    Args:
        text: The text.
        what: What it is, as a subject, for the error.

    Raises:
        InputError: If it is no text, or not UTF-8; fact ``position``.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} must be a text, not {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        try:
            return text.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeError:
            raise InputError(
                f"{what} is not UTF-8 text (from character {error.start + 1} on).",
                advice="Save or convert it as UTF-8.",
                position=error.start,
            ) from error
    return text


def _tokenize(processors: Processors, texts: list[str], add_special_tokens: bool) -> Inputs:
    tokenizer = processors.tokenizer
    if len(texts) > 1 and tokenizer.pad_token is None:
        raise InputError(
            "Several prompts need a padding token, and this tokenizer has none.", advice="Pass one by one."
        )
    with processors.tokenizing, foreign("The tokenizer", processors.path, error=InputError):
        # Padded here: it would set itself up for that, which it cannot while another thread uses it.
        found: list[list[int]] = tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    empty = [number for number, ids in enumerate(found) if not ids]
    if empty:
        which = "The prompt" if len(texts) == 1 else f"Prompt {empty[0] + 1} of {len(texts)}"
        raise InputError(f"{which} is empty.", advice="Give the model at least one token to continue.")
    encoded = _padded(found, tokenizer.pad_token_id or 0)
    if processors.embedding_rows is not None:
        check_ids(encoded["input_ids"], tokenizer, processors.embedding_rows)
    return encoded


def _padded(found: Sequence[Sequence[int]], padding: int) -> Inputs:
    """Rows of tokens, padded on the left to the longest."""
    import torch

    longest = max(map(len, found))
    ids = torch.full((len(found), longest), padding, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(found):
        ids[row, longest - len(tokens) :] = torch.tensor(tokens, dtype=torch.int64)
        mask[row, longest - len(tokens) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _assembled(processors: Processors, texts: list[str], media: MediaFiles, add_special_tokens: bool) -> dict[str, Any]:
    made = assemble(processors, texts, media)
    inputs: dict[str, Any] = dict(_tokenize(processors, made.texts, add_special_tokens))
    if processors.needs_token_types:
        inputs["mm_token_type_ids"] = token_types(processors, inputs["input_ids"])
    return inputs | made.features

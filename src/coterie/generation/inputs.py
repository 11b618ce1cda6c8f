"""From prompts, pictures and sounds to what a model's forward takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import InputError
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
from coterie.generation.placeholders import MediaTokens, expand, picture_lengths, place_media, sound_lengths
from coterie.generation.processors import Processors
from coterie.generation.sound import read_sound
from coterie.hf.foreign import foreign
from coterie.hf.processor_limits import MOST_PIXELS
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
    add_special_tokens: bool = True,
) -> BatchFeature:
    """Makes a model's inputs, the same as its processor in transformers would.

    Args:
        source: A model directory, or its :class:`Processors` where several prompts are made.
        text: A prompt, or several for a batch (padded on the left). Each file is mentioned once, in order, in the
            model's own tokens: ``<|vision_start|><|image_pad|><|vision_end|>`` for a picture,
            ``<|audio_start|><|audio_pad|><|audio_end|>`` for a sound. Files of a kind that a single prompt does not
            mention are put in front of it, pictures first.
        images: Picture files.
        audios: Sound files: WAV, FLAC, Ogg, MP3 and others.
        add_special_tokens: Whether the tokenizer adds what it puts around every text; False for rendered chats.

    Returns:
        ``input_ids`` and ``attention_mask`` int64 [batch, tokens]; with pictures ``pixel_values`` float32 [patches,
        values] and ``image_grid_thw`` int64 [pictures, 3] (and ``mm_token_type_ids`` where the model wants them); with
        sounds ``input_features`` float32 [sounds, mel bins, frames] and ``feature_attention_mask`` [sounds, frames].
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
    if not images and not audios:
        kinds = [tokens for tokens in (processors.pictures, processors.sounds) if tokens is not None]
        place_media(texts, [(tokens, 0) for tokens in kinds])
        return BatchFeature(_tokenize(processors, texts, add_special_tokens))
    if (full := processors.full) is not None:
        return _with_full_processor(processors, full, texts, images, audios, add_special_tokens)
    return BatchFeature(_from_parts(processors, texts, images, audios, add_special_tokens))


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


def _from_parts(
    processors: Processors,
    texts: list[str],
    images: Sequence[str | Path],
    audios: Sequence[str | Path],
    add_special_tokens: bool,
) -> Inputs:
    features: Inputs = {}
    lengths: list[tuple[MediaTokens, list[int]]] = []
    if processors.pictures is not None:
        counts = []
        if images:
            features |= _picture_features(processors, images)
            counts = picture_lengths(features["image_grid_thw"], processors.image_processor.merge_size)
        lengths.append((processors.pictures, counts))
    if processors.sounds is not None:
        counts = []
        if audios:
            features |= _sound_features(processors, audios)
            counts = sound_lengths(features["feature_attention_mask"].sum(-1), processors.n_window)
        lengths.append((processors.sounds, counts))
    elif audios:
        raise InputError(f"A {processors.config.get('model_type')} model does not take sounds.")
    inputs = _tokenize(processors, expand(texts, lengths), add_special_tokens)
    if processors.needs_token_types:
        image_id = processors.tokenizer.convert_tokens_to_ids(lengths[0][0].pad)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == image_id).long()
    return inputs | features


def _picture_features(processors: Processors, images: Sequence[str | Path]) -> Inputs:
    import torch

    # One by one: what a picture becomes is small beside what it is while it is decoded.
    found = [_one_picture(processors, path) for path in images]
    return {name: torch.cat([one[name] for one in found]) for name in ("pixel_values", "image_grid_thw")}


def _one_picture(processors: Processors, path: str | Path) -> Inputs:
    with decoding():
        room = decoding_room()
        picture = read_picture(path, room=room, may_shrink=may_shrink())
        with foreign(f"The picture {path} with the image processor", processors.path, error=InputError, advice=None):
            _check_pixels(processors.image_processor, picture, path)
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


def _sound_features(processors: Processors, audios: Sequence[str | Path]) -> Inputs:
    extractor = processors.feature_extractor
    with DECODING, foreign("The sounds with the feature extractor", processors.path, error=InputError, advice=None):
        features = extractor(
            _read_sounds(processors, audios),
            sampling_rate=extractor.sampling_rate,
            padding=True,
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        # The name says whose mask it is: the text has one too.
        return {"input_features": features["input_features"], "feature_attention_mask": features["attention_mask"]}


def _read_sounds(processors: Processors, audios: Sequence[str | Path]) -> list[Any]:
    extractor = processors.feature_extractor
    limit = processors.max_seconds() if processors.sounds is not None else None
    # The spectrogram reflects half a window at each end, so a sound must be longer than that.
    shortest = int(getattr(extractor, "n_fft", 0)) // 2 + 1
    with DECODING:
        room = decoding_room()
        sounds: list[Any] = []
        for path in audios:
            left = None if room is None else room - sum(sound.nbytes for sound in sounds)
            with decoding():
                sounds.append(read_sound(path, rate=extractor.sampling_rate, max_seconds=limit, room=left))
        with decoding():
            check_features(sounds, room)
    for path, sound in zip(audios, sounds, strict=True):
        if len(sound) < shortest:
            raise InputError(
                f"The sound {path} is too short: {len(sound)} samples at {extractor.sampling_rate} Hz; the model's "
                f"features need {shortest}.",
                path=Path(path),
            )
    return sounds


def _all_pictures(images: Sequence[str | Path]) -> list[Any]:
    """Pictures for a processor that wants all at once, and takes about as much again for each."""
    pictures: list[Any] = []
    for path in images:
        with decoding():
            room = decoding_room()
            held = sum(picture.width * picture.height for picture in pictures) * FULL_PROCESSOR_NBYTES
            left = None if room is None else (room - held) // 2
            pictures.append(read_picture(path, room=left, may_shrink=may_shrink()))
    return pictures


def _with_full_processor(
    processors: Processors,
    full: Any,
    texts: list[str],
    images: Sequence[str | Path],
    audios: Sequence[str | Path],
    add_special_tokens: bool,
) -> BatchFeature:
    for given, part, what in ((images, "image_processor", "pictures"), (audios, "feature_extractor", "sounds")):
        if given and getattr(full, part, None) is None:
            raise InputError(f"A {processors.config.get('model_type')} model does not take {what}.")
    media = [(processors.pictures, len(images)), (processors.sounds, len(audios))]
    texts = place_media(texts, [(tokens, count) for tokens, count in media if tokens is not None])
    options: dict[str, Any] = {}
    if len(texts) > 1:
        options |= {"padding": True, "padding_side": "left"}
    # Processors have a tokenizer of their own, which they set up anew for each call.
    with DECODING, foreign(f"This input with {type(full).__name__}", processors.path, error=InputError, advice=None):
        if images:
            options["images"] = _all_pictures(images)
        if audios:
            options["audio"] = _read_sounds(processors, audios)
        return full(text=texts, return_tensors="pt", add_special_tokens=add_special_tokens, **options)

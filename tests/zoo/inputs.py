"""Example inputs: text ids, pictures and sounds with their placeholder tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from zoo.sizes import TEXT_IDS, TOKENS

_FRAMES = (40, 24)
"""Mel frames of a row's sound, alternating between rows: 5 and 3 audio tokens."""
_GRIDS = ((1, 4, 4), (1, 4, 8))
"""Patches of a row's picture in time, height and width, alternating: 4 and 8 image tokens after the 2×2 merge."""


def example_inputs(
    config: PreTrainedConfig, seed: int, batch: int, length: int, *, image: bool, audio: bool
) -> dict[str, torch.Tensor]:
    """Rows of ``length`` ids without padding; see :meth:`ZooModel.inputs`.

    A full Omni model gets the turns of a chat, because it looks for them when it speaks.
    """
    generator = torch.Generator().manual_seed(seed)
    holder = getattr(config, "thinker_config", config)
    before, after = [], []
    if holder is not config:
        before = [TOKENS["im_start"], TOKENS["user"], TOKENS["newline"]]
        after = [TOKENS["im_end"], TOKENS["im_start"], TOKENS["assistant"], TOKENS["newline"]]
    rows = []
    for row in range(batch):
        ids = [*before, *_placeholders(row, image=image, audio=audio)]
        rest = length - len(ids) - len(after)
        if rest < 1:
            raise ValueError(f"length {length} leaves no room for text; use at least {length + 1 - rest}")
        ids += torch.randint(3, TEXT_IDS, (rest,), generator=generator).tolist() + after
        rows.append(ids)
    inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.ones(batch, length, dtype=torch.int64)}
    if canvas := getattr(config, "canvas_length", None):
        inputs["decoder_input_ids"] = torch.randint(3, TEXT_IDS, (batch, canvas), generator=generator)
    elif config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, TEXT_IDS, (batch, 8), generator=generator)
    if image:
        inputs |= _images(holder.vision_config, batch, generator)
        if holder.model_type.startswith(("qwen3_vl", "ernie4_5_vl")):
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == TOKENS["image"]).int()
        if holder.model_type.startswith("ernie4_5_vl"):
            marks = torch.tensor([TOKENS[name] for name in ("image", "vision_start", "vision_end")])
            inputs["moe_mm_token_type_ids"] = torch.isin(inputs["input_ids"], marks).int()
    if audio:
        inputs |= _sounds(holder.audio_config, batch, generator)
    return inputs


def _placeholders(row: int, *, image: bool, audio: bool) -> list[int]:
    ids: list[int] = []
    if image:
        frames, height, width = _GRIDS[row % 2]
        ids += [TOKENS["vision_start"], *[TOKENS["image"]] * (frames * height * width // 4), TOKENS["vision_end"]]
    if audio:
        ids += [TOKENS["audio_start"], *[TOKENS["audio"]] * (_FRAMES[row % 2] // 8), TOKENS["audio_end"]]
    return ids


def _images(vision: Any, batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    grid = torch.tensor([_GRIDS[row % 2] for row in range(batch)])
    channels = vision.in_channels if hasattr(vision, "in_channels") else vision.num_channels
    patch = channels * getattr(vision, "temporal_patch_size", 1) * vision.patch_size**2
    return {
        "pixel_values": torch.randn(int(grid.prod(dim=1).sum()), patch, generator=generator),
        "image_grid_thw": grid,
    }


def _sounds(audio: Any, batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    lengths = torch.tensor([_FRAMES[row % 2] for row in range(batch)])
    mask = torch.arange(max(_FRAMES))[None] < lengths[:, None]
    return {
        "input_features": torch.randn(batch, audio.num_mel_bins, max(_FRAMES), generator=generator) * mask[:, None],
        "feature_attention_mask": mask.long(),
    }


def logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The next-token logits ``[batch, length, vocabulary]``; of the thinker for a full Omni model."""
    part = getattr(model, "thinker", model)
    # Older releases of transformers do not cast sounds to the dtype of the weights themselves.
    inputs = {name: t.to(part.dtype) if t.is_floating_point() else t for name, t in inputs.items()}
    with torch.no_grad():
        result: torch.Tensor = part(**inputs).logits
    return result

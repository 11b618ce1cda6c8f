"""Pictures and sounds of a prompt, each with its place and what the model is given of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from coterie.hf.prompt_media import Media, media_of

PICTURE, SOUND = 7, 8
CONFIG = SimpleNamespace(model_type="qwen3_omni_moe_thinker", image_token_id=PICTURE, audio_token_id=SOUND)
IDS = [1, 7, 7, 7, 7, 2, 8, 8, 2, 7, 2]


def inputs(**others: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([IDS]),
        "attention_mask": torch.ones(1, len(IDS)),
        "pixel_values": torch.arange(40.0).reshape(20, 2),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 2, 2]]),
        "input_features": torch.ones(1, 3, 9, dtype=torch.bfloat16),
        "feature_attention_mask": torch.ones(1, 9),
        **others,
    }


def test_each_is_where_its_tokens_are() -> None:
    media = media_of(CONFIG, inputs())
    assert media is not None
    assert [(one.begin, one.end) for one in media.each] == [(1, 5), (6, 8), (9, 10)]
    assert len({one.digest for one in media.each}) == 3
    given = media.inputs(0, 9)
    assert torch.equal(given["pixel_values"], inputs()["pixel_values"][:16])
    assert given["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert given["input_features"].shape == (1, 3, 9)
    assert torch.equal(media.inputs(0, 11)["pixel_values"], inputs()["pixel_values"])
    assert media.inputs(2, 6) == {}
    assert [media.after(position) for position in (0, 1, 2, 4, 5, 7, 11)] == [0, 1, 5, 5, 5, 8, 11]
    assert set(media.prepared(inputs())) == set(inputs()) - {"pixel_values", "input_features"}


def test_what_is_shown_is_what_tells_them_apart() -> None:
    def digests(**others: torch.Tensor) -> list[bytes]:
        media = media_of(CONFIG, inputs(**others))
        assert media is not None
        return [one.digest for one in media.each]

    same = digests()
    assert digests() == same
    pixels = inputs()["pixel_values"]
    pixels[17] += 1
    assert [new == old for new, old in zip(digests(pixel_values=pixels), same, strict=True)] == [True, True, False]
    assert digests(image_grid_thw=torch.tensor([[1, 2, 8], [1, 2, 2]]))[0] != same[0]


@pytest.mark.parametrize(
    "others",
    [
        {"pixel_values_videos": torch.ones(2)},
        {"image_grid_thw": torch.tensor([[1, 4, 4]])},
        {"image_grid_thw": torch.tensor([[1, 4, 4], [1, 2, 4]])},
        {"input_features": torch.ones(2, 3, 9)},
    ],
)
def test_what_cannot_be_told_apart_is_not(others: dict[str, torch.Tensor]) -> None:
    assert media_of(CONFIG, inputs(**others)) is None


def test_models_whose_media_are_not_known() -> None:
    assert media_of(SimpleNamespace(model_type="aria"), inputs()) is None
    text = {"input_ids": torch.tensor([IDS]), "attention_mask": torch.ones(1, 11)}
    assert media_of(SimpleNamespace(model_type="aria"), text) == Media()

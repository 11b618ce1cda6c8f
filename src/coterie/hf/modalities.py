"""Which modalities the experts of a model serve, by its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coterie.hf.token_roles import token_roles

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ONLY = {"talker": "speech", "vision": "image", "audio": "audio"}
"""Components whose tokens are of one modality."""


def served_modalities(config: PreTrainedConfig, component: str) -> frozenset[str]:
    """The modalities that a component takes or makes.

    Frames of a video pass the encoder of pictures and have its modality's place: only ``image`` is named for both.

    Args:
        config: The model's configuration, of a whole model or of the component.
        component: Name of the component.
    """
    only = _ONLY.get(component)
    if only is not None:
        return frozenset({only})
    media = set(token_roles(config, component).media.values())
    if "video" in media and "image" in media:
        media.discard("video")
    return frozenset({"text", *media})

"""Which token ids stand for something else than text, by a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coterie.hf.configs import COMPONENTS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_MEDIA = ("image", "video", "audio")
_PLACEHOLDERS = ("{}_token_id", "{}_token_index")
"""What configurations call the id that is repeated once per feature vector of a medium."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRoles:
    """What token ids of one component stand for.

    Attributes:
        media: Id → ``image``, ``video`` or ``audio``: placeholders whose embedding an encoder makes.
        padding: Id that finished sequences of a batch go on with, or None.
    """

    media: Mapping[int, str] = field(default_factory=dict)
    padding: int | None = None


def token_roles(config: PreTrainedConfig, component: str) -> TokenRoles:
    """The roles of the input ids of a component.

    Args:
        config: The model's configuration, of a whole model or of the component.
        component: Name of the component. A talker's ids are those of a speech codec, whatever its configuration says
            of the ids that its thinker read.
    """
    if component == "talker":
        return TokenRoles()
    part = getattr(config, f"{component}_config", None) if component in COMPONENTS else None
    holder: Any = config if part is None else part
    media: dict[int, str] = {}
    for kind in _MEDIA:
        values = (_id(holder, name.format(kind)) for name in _PLACEHOLDERS)
        media |= {value: kind for value in values if value is not None}
    texts = holder.get_text_config()
    padding = _id(holder, "pad_token_id")
    padding = _id(texts, "pad_token_id") if padding is None else padding
    return TokenRoles(media=media, padding=padding)


def _id(config: object, name: str) -> int | None:
    value = getattr(config, name, None)
    # Some configurations have −1 for a token that there is not.
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

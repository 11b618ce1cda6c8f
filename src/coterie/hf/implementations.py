"""Implementations of attention and experts that a configuration asks for: wishes, which say nothing about the model.

One of them may name a kernel in somebody's repository on the Hub, whose code transformers would download and run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import CheckpointFileError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_KEYS = ("attn_implementation", "_attn_implementation")
_KEPT = ("eager", "flex_attention")
_DEFAULT = "sdpa"


def settle_implementations(config: PreTrainedConfig, path: Path) -> None:
    """Leaves transformers' own choice where a configuration asks for what this machine has not.

    Args:
        config: The configuration; it and its parts are changed.
        path: Where it is, for messages.

    Raises:
        CheckpointFileError: If it names an implementation by something else than a text.
    """
    attention = config._attn_implementation_internal
    if not isinstance(attention, str | None):
        raise CheckpointFileError(
            f"{path} has the value {ascii(attention)[:60]} for attn_implementation: it has to be a text.",
            advice="Remove it.",
            path=path,
            key="attn_implementation",
            got=attention,
        )
    config._attn_implementation_internal = attention if attention in _KEPT else None
    # Experts are computed by Coterie. Releases before 5.2 have no such choice.
    if hasattr(config, "_experts_implementation_internal"):
        config._experts_implementation_internal = None
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None and hasattr(part, "_attn_implementation_internal"):
            settle_implementations(part, path)


def unavailable_attention(raw: Mapping[str, Any]) -> str | None:
    """The implementation of attention that ``config.json`` asks for and does not get, or None.

    Args:
        raw: Its content.
    """
    for key, value in raw.items():
        parts = list(value.values()) if key in _KEYS and isinstance(value, Mapping) else [value]
        wish = next((one for one in parts if key in _KEYS and isinstance(one, str)), None)
        if wish is None and isinstance(value, Mapping):
            wish = unavailable_attention(value)
        if wish not in (None, _DEFAULT, *_KEPT):
            return wish
    return None

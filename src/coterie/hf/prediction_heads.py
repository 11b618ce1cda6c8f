"""Heads that predict several tokens at once: transformers has no use for them, and a store does not keep them."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import CoterieError
from coterie.hf.configs import load_config, resolve_model
from coterie.hf.skeleton import build_skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "mtp_num_layers")


def without_prediction_heads(raw: Mapping[str, Any], model: PreTrainedModel) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A configuration that says that there are no such heads, and the model otherwise the same.

    Args:
        raw: The content of ``config.json``.
        model: The skeleton that it describes.

    Returns:
        The new content, and the keys that became 0; none where the model would change with them.
    """
    changed = copy.deepcopy(dict(raw))
    keys = []
    for path, part in _mappings(changed):
        for name in _COUNTS:
            if type(part.get(name)) is int and part[name] > 0:
                part[name] = 0
                keys.append(".".join((*path, name)))
    if keys and _shapes(_built(changed, model)) != _shapes(model):
        return dict(raw), ()
    return changed, tuple(keys)


def _mappings(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    yield path, value
    for key, part in value.items():
        if isinstance(part, dict):
            yield from _mappings(part, (*path, key))


def _built(raw: Mapping[str, Any], model: PreTrainedModel) -> PreTrainedModel | None:
    try:
        with tempfile.TemporaryDirectory(prefix="coterie-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(raw))
            return build_skeleton(*resolve_model(load_config(Path(folder)), None), model.dtype)
    except CoterieError:
        return None


def _shapes(model: PreTrainedModel | None) -> dict[str, tuple[int, ...]] | None:
    return None if model is None else {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

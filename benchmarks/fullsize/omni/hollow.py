"""A checkpoint of headers over holes: every tensor of a model by name, dtype and shape, and hardly a byte on the disk.

Reading it gives zeros. It is for what only looks at headers: plans of extraction, and what a memory budget would hold.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from fullsize.omni.configuration import Config
from fullsize.omni.side_files import side_files

_BF16_BYTES = 2
_LAYER = re.compile(r"(thinker|talker)\.model\.layers\.(\d+)\.")
_RENAMED = (
    ("thinker.model.language_model.", "thinker.model."),
    ("thinker.model.audio_tower.", "thinker.audio_tower."),
    ("thinker.model.visual.", "thinker.visual."),
)
"""Names in some releases of transformers, and in checkpoints."""

Shape = tuple[int, ...]


def write_hollow_checkpoint(directory: Path, config: Config) -> Path:
    """Writes all files of a checkpoint, weights as holes; returns its directory.

    Args:
        directory: Made if need be; files of the same names are replaced.
        config: A whole omni model's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in side_files(config).items():
        (directory / name).write_bytes(data)
    shards: dict[str, dict[str, Shape]] = {}
    for name, shape in _tensors(directory).items():
        layer = _LAYER.match(name)
        shards.setdefault(f"{layer[1]}-{int(layer[2]):03d}" if layer else "rest", {})[name] = shape
    weight_map: dict[str, str] = {}
    total = 0
    for number, (_, tensors) in enumerate(sorted(shards.items())):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        total += _write_header(directory / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def _tensors(directory: Path) -> dict[str, Shape]:
    """Names and shapes in a checkpoint of the model that ``config.json`` describes: each expert by itself."""
    import torch
    from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3OmniMoeForConditionalGeneration(Qwen3OmniMoeConfig.from_pretrained(directory))
    found: dict[str, Shape] = {}
    for name, value in model.state_dict().items():
        shape = tuple(value.shape)
        for ours, theirs in _RENAMED:
            name = name.replace(ours, theirs)
        stem, _, matrix = name.rpartition(".")
        if not stem.endswith(".experts"):
            found[name] = shape
            continue
        experts, rows, columns = shape
        parts = ("gate_proj", "up_proj") if matrix == "gate_up_proj" else ("down_proj",)
        for expert in range(experts):
            found |= {f"{stem}.{expert}.{part}.weight": (rows // len(parts), columns) for part in parts}
    return found


def _write_header(path: Path, tensors: dict[str, Shape]) -> int:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + math.prod(shape) * _BF16_BYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end

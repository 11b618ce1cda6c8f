"""What was trained, as files of the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from talker.configuration import CHAT_TEMPLATE

WEIGHTS = "talker.safetensors"


def write_package(folder: Path, config: dict[str, Any], talker: nn.Module, vocoder: nn.Module) -> int:
    """Writes weights, configuration and chat template; the thinker's files are where they are.

    Returns:
        Bytes of the weights.
    """
    folder.mkdir(exist_ok=True)
    tensors = {**dict(_named("talker", talker)), **dict(_named("code2wav", vocoder))}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes it for its owner alone
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return (folder / WEIGHTS).stat().st_size


def _named(part: str, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights in bf16 under the names that released checkpoints give them: each expert's by itself."""
    for name, value in model.state_dict().items():
        tensor = value.to(torch.bfloat16).contiguous()
        place = f"{part}.{name.rpartition('.')[0]}"
        if name.endswith("experts.gate_up_proj"):
            for number, (gate, up) in enumerate(expert.chunk(2) for expert in tensor):
                yield f"{place}.{number}.gate_proj.weight", gate.clone()
                yield f"{place}.{number}.up_proj.weight", up.clone()
        elif name.endswith("experts.down_proj"):
            for number, down in enumerate(tensor):
                yield f"{place}.{number}.down_proj.weight", down.clone()
        elif value.is_floating_point():
            yield f"{part}.{name}", tensor

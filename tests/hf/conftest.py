"""Zoo checkpoints seen through ``coterie.hf``: skeleton, names, a reader, and the stock model beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from coterie.hf.configs import load_config, resolve_model
from coterie.hf.keymap import KeyMap, map_keys
from coterie.hf.skeleton import build_skeleton
from zoo import ZOO


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A checkpoint and what ``coterie.hf`` makes of it."""

    directory: Path
    component: str | None
    model: PreTrainedModel
    names: list[str]
    keymap: KeyMap

    def read(self, name: str, index: int | None) -> torch.Tensor:
        with safe_open(self.directory / "model.safetensors", "pt") as file:
            if index is None:
                return file.get_tensor(name)
            return file.get_slice(name)[index : index + 1]


Open = Callable[..., Subject]


@pytest.fixture
def subject_of(zoo_checkpoint: Callable[..., Path]) -> Open:
    """Opens ``(name, dtype=float32, component=None)``; skips what the installed transformers lacks."""

    def open_(name: str, dtype: torch.dtype = torch.float32, component: str | None = None) -> Subject:
        if reason := ZOO[name].why_not:
            pytest.skip(reason)
        directory = zoo_checkpoint(name, dtype)
        cls, config = resolve_model(load_config(directory), component)
        model = build_skeleton(cls, config, dtype)
        with safe_open(directory / "model.safetensors", "pt") as file:
            names = list(file.keys())
        keymap = map_keys(model, names, component=component)
        return Subject(directory=directory, component=component, model=model, names=names, keymap=keymap)

    return open_

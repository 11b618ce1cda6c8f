"""Tensors that transformers itself ignores are listed, not read and not missed; what belongs to nothing is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file

from coterie.checkpoint import Checkpoint
from coterie.errors import UnclaimedTensorError
from coterie.extraction import extract
from coterie.store import Store
from zoo import MATRIX, load, logits, save

_BAILING = 42 if Version(transformers.__version__) < Version("5.24") else 2
"""The layer beyond the last; earlier releases ignore that of the released model, whatever number the last one has."""

HEADS = {
    "bailing_hybrid": [
        f"model.layers.{_BAILING}.eh_proj.weight",
        f"model.layers.{_BAILING}.mlp.experts.3.up_proj.weight",
    ],
    "deepseek_v3": ["model.layers.61.embed_tokens.weight", "model.layers.61.mlp.experts.0.down_proj.weight"],
    "deepseek_v4": ["mtp.0.ffn.experts.1.w1.weight", "mtp.0.norm.weight"],
    "ernie4_5_moe": ["model.mtp_block.0.mlp.experts.2.up_proj.weight", "model.mtp_linear_proj.0.weight"],
    "exaone_moe": ["mtp.fc.weight", "mtp.layers.0.mlp.experts.0.gate_proj.weight"],
    "glm4_moe": ["model.layers.46.shared_head.norm.weight", "model.layers.92.mlp.experts.7.gate_proj.weight"],
    "hy_v3": ["model.layers.80.enorm.weight", "model.layers.80.mlp.experts.0.down_proj.weight"],
    "mellum": ["mtp.fc.weight", "mtp.mlp.experts.0.down_proj.weight"],
    "mimo_v2_flash": ["model.mtp.layers.0.mlp.gate_proj.weight"],
    "nemotron_h": ["mtp.layers.0.eh_proj.weight", "mtp.layers.1.mixer.experts.0.up_proj.weight"],
    "qwen3_5_moe_text": ["mtp.layers.0.mlp.experts.0.gate_proj.weight", "model.visual.patch_embed.proj.weight"],
    "qwen3_next": ["mtp.layers.0.mlp.experts.5.up_proj.weight", "mtp.pre_fc_norm_hidden.weight"],
}
"""Multi-token-prediction heads and the like, under the names that released checkpoints of the class have."""

FOREIGN = "model.layers.0.adapter.weight"


def inject(checkpoint: Path, names: list[str]) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file) | {name: torch.full((3, 5), 7.0) for name in names}
    save_file(tensors, file, {"format": "pt"})


@pytest.fixture(params=sorted(HEADS))
def injected(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A variant's checkpoint with its head in it."""
    if reason := MATRIX[request.param].why_not:
        pytest.skip(reason)
    save(MATRIX[request.param], torch.float32, tmp_path / "checkpoint")
    inject(tmp_path / "checkpoint", HEADS[request.param])
    return request.param, tmp_path / "checkpoint"


def test_what_transformers_ignores_is_listed(injected, tmp_path, open_model):
    name, checkpoint = injected
    stock, report = load(checkpoint, torch.float32)
    assert {kind: keys for kind, keys in report.items() if keys} == {}  # transformers does ignore it
    assert Checkpoint.open(checkpoint).keymap.ignored == sorted(HEADS[name])
    assert extract(checkpoint, tmp_path / "store").ignored == tuple(sorted(HEADS[name]))
    store = Store.open(tmp_path / "store")
    assert store.manifest.ignored == tuple(sorted(HEADS[name]))
    held = {tensor for file in store.dense_files for tensor in load_file(file)}
    assert held.isdisjoint(HEADS[name])
    inputs = MATRIX[name].inputs(seed=3)
    for path in (checkpoint, tmp_path / "store"):
        assert torch.allclose(logits(open_model(path), inputs), logits(stock, inputs), atol=1e-4)


def test_what_belongs_to_nothing_is_named(injected, tmp_path):
    _, checkpoint = injected
    inject(checkpoint, [FOREIGN])
    with pytest.raises(UnclaimedTensorError, match=FOREIGN) as caught:
        extract(checkpoint, tmp_path / "store")
    assert caught.value.unclaimed == [FOREIGN]
    with pytest.raises(UnclaimedTensorError, match=FOREIGN):
        Checkpoint.open(checkpoint)

"""Experts that share: tensors shared out among several banks, and modules that share one bank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import Chunk, WeightConverter

from coterie.checkpoint import Checkpoint
from coterie.errors import TensorMissingError, UnsupportedError
from coterie.extraction import extract
from coterie.hf.decoding import decode_field, is_plain
from coterie.hf.keymap import map_keys
from coterie.hf.skeleton import build_skeleton
from coterie.spec import BankKey
from coterie.store import Store
from zoo import MATRIX, load, save


@pytest.fixture
def saved(tmp_path: Path):
    """Saves a variant of the matrix; skips what the installed transformers lacks."""

    def make(name: str, dtype: torch.dtype = torch.bfloat16) -> Path:
        if reason := MATRIX[name].why_not:
            pytest.skip(reason)
        save(MATRIX[name], dtype, tmp_path / name)
        return tmp_path / name

    return make


def rewrite(checkpoint: Path, change) -> None:
    file = checkpoint / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def test_one_list_of_experts_becomes_two_banks(saved):
    """Ernie 4.5 VL: of 16 experts in the checkpoint the first half is for text, the other for pictures."""
    directory = saved("ernie4_5_vl_moe")
    checkpoint, (stock, _) = Checkpoint.open(directory), load(directory, torch.bfloat16)
    assert [key.bank for key in checkpoint.banks] == ["text_moe", "vision_moe"]
    claimed: list[str] = []
    for bank in checkpoint.banks.values():
        for parameter, source in bank.fields.items():
            stacked = stock.get_parameter(f"{bank.bank.path}.{parameter}")
            assert is_plain(source)
            claimed += [name for names in source.names.values() for name in names]
            for expert in range(bank.bank.num_experts):
                decoded = decode_field(source, expert, checkpoint.read, checkpoint.skeleton)
                assert torch.equal(decoded, stacked[expert])
    assert len(claimed) == len(set(claimed)) == 16 * 3


def test_a_share_that_is_not_whole_is_named(saved):
    directory = saved("ernie4_5_vl_moe")
    rewrite(directory, lambda tensors: {n: t for n, t in tensors.items() if ".experts.15.up_proj" not in n})
    with pytest.raises(TensorMissingError, match="needs 8 tensors"):
        Checkpoint.open(directory)


def test_a_conversion_that_cuts_tensors_is_refused(monkeypatch):
    """None of transformers' own does that to experts; one that did would be computed wrongly."""
    model = build_skeleton(MATRIX["mixtral"].model_class, MATRIX["mixtral"].config(), torch.float32)
    cutting = WeightConverter("experts.both", ["experts.gate_up_proj", "experts.down_proj"], [Chunk(dim=0)])
    monkeypatch.setattr("coterie.hf.keymap._conversions", lambda *_: [cutting])
    with pytest.raises(UnsupportedError, match="split over several parameters"):
        map_keys(model, ["model.layers.0.mlp.experts.both"])


def test_layers_of_a_tower_have_banks_of_their_own(saved):
    checkpoint = Checkpoint.open(saved("dots3_note"))
    paths = {key: bank.bank.path for key, bank in checkpoint.banks.items()}
    assert sorted(paths) == [BankKey("text", 0, "mlp"), BankKey("text", 1, "mlp"), BankKey("vision", 0, "mlp")]
    assert "vision_tower" in paths[BankKey("vision", 0, "mlp")]


def test_tied_modules_share_a_bank_and_its_records(saved, tmp_path, open_model):
    """Diffusion Gemma: encoder and decoder are the same layers."""
    directory = saved("diffusion_gemma")
    checkpoint = Checkpoint.open(directory)
    assert {key: len(bank.bank.tied) for key, bank in checkpoint.banks.items()} == {
        BankKey("text", 0, "mlp"): 1,
        BankKey("text", 1, "mlp"): 1,
    }
    extract(directory, tmp_path / "store")
    assert len(Store.open(tmp_path / "store").keys()) == 2 * 8
    model = open_model(tmp_path / "store")
    with torch.no_grad():
        model(**MATRIX["diffusion_gemma"].inputs(seed=1))
    stats = model.coterie.stats()
    assert stats.total.misses <= 2 * 8 < stats.total.requested  # both modules ask, one reads


def test_tied_experts_that_are_there_twice_are_refused(saved):
    directory = saved("diffusion_gemma")
    bank = next(iter(Checkpoint.open(directory).banks.values())).bank

    def double(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        first, other = (f"{path}.down_proj" for path in (bank.path, bank.tied[0]))
        assert (first in tensors) != (other in tensors)
        one = tensors[first] if first in tensors else tensors[other]
        return tensors | {first: one, other: one + 1}

    rewrite(directory, double)
    with pytest.raises(UnsupportedError, match="which the model ties"):
        Checkpoint.open(directory)

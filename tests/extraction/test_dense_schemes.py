"""Stores whose linear layers outside experts are in several schemes, by part of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coterie.checkpoint import Checkpoint
from coterie.extraction import extract
from coterie.hf.linears import linear_weights
from coterie.inspection import verify
from coterie.origins import StoreOrigin
from coterie.spec.dense_schemes import DenseSchemes
from coterie.store import Store, verify_store

PARTS_OF_OMNI = ("attention", "head", "encoders", "talker", "predictor")
"""Its language model has no dense MLPs and no shared experts."""


@pytest.fixture(scope="module")
def omni(zoo_checkpoint) -> Path:
    return zoo_checkpoint("qwen3_omni", torch.bfloat16)


def schemes(store: Path) -> DenseSchemes:
    return Store.open(store).manifest.dense_schemes


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("part", PARTS_OF_OMNI)
@pytest.mark.filterwarnings("ignore:predictor=int4")
def test_one_part_is_rounded_and_every_other_tensor_is_the_checkpoints(
    part: str, scheme: str, omni: Path, tmp_path: Path
) -> None:
    extract(omni, tmp_path / "store", dense_scheme={part: scheme}, experts="0")
    assert schemes(tmp_path / "store").of(part) == scheme
    assert verify_store(tmp_path / "store").problems == ()
    assert verify(tmp_path / "store", against=omni).ok
    origin, checkpoint = StoreOrigin.open(tmp_path / "store"), Checkpoint.open(omni)
    parts = {name: weight.part for name, weight in linear_weights(checkpoint.skeleton, checkpoint.keymap).items()}
    assert {parts[name] for name in origin.linears} == {part}
    stored = {name for name in origin.tensors if name in checkpoint.keymap.dense}
    assert stored == checkpoint.keymap.dense.keys() - origin.linears.keys()
    for name in stored:
        assert torch.equal(
            *(torch.frombuffer(_bytes(one.tensors[name]), dtype=torch.uint8) for one in (origin, checkpoint))
        )


def _bytes(info) -> bytearray:
    with info.path.open("rb") as file:
        file.seek(info.offset)
        return bytearray(file.read(info.nbytes))

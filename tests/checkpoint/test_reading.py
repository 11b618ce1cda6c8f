"""Tensors are read as the safetensors library reads them, and what goes wrong is told by name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from coterie.checkpoint import Checkpoint, read_header, read_tensor
from coterie.errors import CheckpointFileError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "words": torch.arange(5, dtype=torch.int32).to(torch.uint16),
        "stack": torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_every_tensor_is_read_at_torchs_own_alignment(path: Path) -> None:
    found = read_header(path)
    assert read_tensor(found["odd"]).tolist() == [0, 1, 2]
    words = read_tensor(found["words"])
    assert (words.dtype, words.tolist()) == (torch.uint16, [0, 1, 2, 3, 4])
    stack = read_tensor(found["stack"])
    assert stack.data_ptr() % 64 == 0
    assert torch.equal(read_tensor(found["stack"], 2), stack[2:3])


def test_a_file_that_vanished_is_named(path: Path) -> None:
    info = read_header(path)["stack"]
    path.unlink()
    with pytest.raises(CheckpointFileError, match="cannot be read: No such file") as caught:
        read_tensor(info)
    assert (caught.value.path, caught.value.tensor) == (path, "stack")


def test_a_file_that_was_cut_is_named(path: Path) -> None:
    # Read without its stamp, as a file is that nobody has looked at before.
    info = replace(max(read_header(path).values(), key=lambda one: one.offset), stamp=None)
    with path.open("r+b") as file:
        file.truncate(info.offset + 1)
    with pytest.raises(CheckpointFileError, match="is truncated") as caught:
        read_tensor(info)
    assert caught.value.tensor == info.name


def test_a_file_that_was_written_to_is_named(path: Path) -> None:
    info = read_header(path)["stack"]
    with path.open("r+b") as file:
        file.truncate(info.offset + 1)
    with pytest.raises(CheckpointFileError, match="was written to after it was first opened") as caught:
        read_tensor(info)
    assert (caught.value.path, caught.value.tensor) == (path, "stack")


def test_all_extents_of_a_file_have_one_source(zoo_checkpoint) -> None:
    """A checkpoint of many thousand experts keeps theirs."""
    checkpoint = Checkpoint.open(zoo_checkpoint("qwen3_moe"))
    extents = [extent for key in checkpoint.keys() for extent in checkpoint.extents(key)]
    assert len({id(extent.source) for extent in extents}) == len({extent.source for extent in extents}) == 1
    assert checkpoint.extents(next(iter(checkpoint.keys()))) is checkpoint.extents(next(iter(checkpoint.keys())))

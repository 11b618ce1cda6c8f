"""A store whose bytes are others than its manifest says, or become others, gives an error and never another text."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import coterie
from coterie.checkpoint import TensorInfo, WholeFile
from coterie.errors import ChecksumError, CoterieError, ReadError
from coterie.extraction import extract, quantize
from coterie.inspection import verify
from coterie.store import verify_store
from odd_files import ODD, make_odd

from .damage import register

PROMPT = torch.tensor([[5, 900, 33, 71]])


Open = Callable[..., PreTrainedModel]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("integrity") / "store"
    extract("bundled", path)
    return path


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "store"))


def tokens(model: object, count: int = 4) -> list[int]:
    found: torch.Tensor = model.generate(PROMPT, max_new_tokens=count, do_sample=False)  # type: ignore[attr-defined]
    return found[0].tolist()


def flip(path: Path, offset: int, nbytes: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(nbytes)
        file.seek(offset)
        file.write(bytes(byte ^ 0x40 for byte in old))


def replace_by_another_layer(path: Path) -> None:
    other = path.with_name("mlp-layer-005.safetensors")
    shutil.copy2(other, path.with_name("copy"))
    path.with_name("copy").replace(path)


def link_outside(path: Path) -> None:
    outside = path.parents[3] / "outside"
    shutil.copy2(path, outside)
    path.unlink()
    path.symlink_to(outside)


def write_in_place(path: Path) -> None:
    flip(path, path.stat().st_size - 5000, 4000)


@pytest.mark.parametrize(
    "change",
    [
        replace_by_another_layer,
        link_outside,
        write_in_place,
        Path.unlink,
        *(pytest.param(partial(make_odd, kind), id=kind) for kind in ODD),
    ],
)
def test_an_expert_file_that_changes_after_loading_is_an_error(
    store: Path, change: Callable[[Path], None], open_model: Open
) -> None:
    model = open_model(store, expert_memory="10%")
    path = store / "experts/thinker/mlp-layer-003.safetensors"
    change(path)
    with pytest.raises(ReadError) as caught:
        tokens(model)
    assert path.name in str(caught.value)
    # Other files are read as before: nothing is left locked.
    with pytest.raises(ReadError):
        tokens(model)


def test_a_file_written_to_after_it_was_read_is_an_error(store: Path, open_model: Open) -> None:
    model = open_model(store, expert_memory="10%")
    tokens(model, 2)
    path = store / "experts/thinker/mlp-layer-003.safetensors"
    write_in_place(path)
    with pytest.raises(ReadError, match=r"mlp-layer-003.*written to"):
        tokens(model, 24)


def test_a_file_replaced_while_it_is_open_stays_what_it_was(store: Path, pristine: Path, open_model: Open) -> None:
    expected = tokens(open_model(pristine, expert_memory="25%"), 8)
    model = open_model(store, expert_memory="25%")
    assert tokens(model, 8) == expected
    replace_by_another_layer(store / "experts/thinker/mlp-layer-003.safetensors")
    assert tokens(model, 8) == expected


@pytest.mark.parametrize("offset", [20, 3_000_000, -1])
def test_damaged_dense_bytes_do_not_load(store: Path, offset: int) -> None:
    path = store / "dense.safetensors"
    flip(path, offset if offset >= 0 else path.stat().st_size - 1)
    with pytest.raises(CoterieError) as caught:
        coterie.load(store, expert_memory="25%")
    assert "dense.safetensors" in str(caught.value)
    if offset > 20:
        assert isinstance(caught.value, ChecksumError)


def test_a_configuration_of_another_value_does_not_load(store: Path) -> None:
    path = store / "config.json"
    text = path.read_text()
    changed = text.replace('"rope_theta": 1', '"rope_theta": 2')
    assert changed != text
    path.write_text(changed)
    with pytest.raises(ChecksumError, match=r"config\.json differs from its checksum"):
        coterie.load(store, expert_memory="25%")


def test_a_side_file_swapped_while_the_model_is_built_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = WholeFile._read

    def swap(self: WholeFile, wanted: Iterable[TensorInfo]) -> dict[str, torch.Tensor]:
        shutil.copy2(store / "config.json", store / "copy")
        (store / "copy").replace(store / "config.json")
        return read(self, wanted)

    monkeypatch.setattr(WholeFile, "_read", swap)
    with pytest.raises(ReadError, match=r"config\.json was replaced or written to"):
        coterie.load(store, expert_memory="25%")


def test_the_dense_file_is_read_once(store: Path, monkeypatch: pytest.MonkeyPatch, open_model: Open) -> None:
    reads: list[Path] = []
    read = WholeFile._read

    def counted(self: WholeFile, wanted: Iterable[TensorInfo]) -> dict[str, torch.Tensor]:
        reads.append(self.path)
        return read(self, wanted)

    monkeypatch.setattr(WholeFile, "_read", counted)
    monkeypatch.setattr(
        "coterie.checkpoint.reading.read_range", lambda *_: pytest.fail("a tensor is read a second time")
    )
    model = open_model(store, expert_memory="25%")
    assert reads == [store / "dense.safetensors"]
    assert not any(file._kept for file in model.coterie.source.dense_files)


def test_a_damaged_store_is_not_quantised(store: Path, tmp_path: Path) -> None:
    flip(store / "dense.safetensors", 3_000_000)
    with pytest.raises(ChecksumError, match=r"dense\.safetensors"):
        quantize(store, tmp_path / "small", scheme="int4", dense_scheme="int4")


def test_int4_layers_come_from_checked_bytes(pristine: Path, tmp_path: Path, open_model: Open) -> None:
    small = tmp_path / "small"
    quantize(pristine, small, scheme="int4", dense_scheme="int4")
    expected = tokens(open_model(small, expert_memory="50%"))
    assert len(expected) == 8
    flip(small / "dense.safetensors", (small / "dense.safetensors").stat().st_size // 2)
    with pytest.raises(ChecksumError, match=r"dense\.safetensors"):
        coterie.load(small, expert_memory="50%")


def rename_tensor(store: Path, old: bytes, new: bytes) -> None:
    """Gives a dense tensor another name, and has the manifest vouch for it."""
    path = store / "dense.safetensors"
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    register(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"lm_head.weight"', b'"lm_hexd.weight"'),
        (b'"model.norm.weight"', b'"model.nosm.weight"'),
    ],
)
def test_dense_tensors_of_another_model_are_a_problem(store: Path, old: bytes, new: bytes) -> None:
    """What opening refuses, verification finds: every checksum is right."""
    rename_tensor(store, old, new)
    assert verify_store(store).ok
    with pytest.raises(CoterieError):
        coterie.load(store, expert_memory="25%")
    (problem,) = verify(store).problems
    assert (
        problem.kind,
        old.decode().strip(chr(34)) in problem.message or new.decode().strip(chr(34)) in problem.message,
    ) == ("malformed", True)

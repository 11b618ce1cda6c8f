"""Headers of safetensors files that are not what they should be: an error that names file and tensor."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from coterie.checkpoint import read_header
from coterie.errors import CheckpointFileError
from coterie.files.safetensors_header import MAX_ELEMENTS, element_count
from odd_files import ODD, make_odd


def written(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: object = "U8", shape: object = (1,), offsets: object = (0, 1)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_what_safetensors_writes_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"b": torch.rand(2, 3), "a": torch.ones((), dtype=torch.int64), "c": torch.zeros(0, 7)}
    save_file(tensors, path, metadata={"format": "pt"})
    found = read_header(path)
    with safe_open(path, "pt") as file:
        assert found.keys() == set(file.keys())
    data = path.read_bytes()
    for name, tensor in tensors.items():
        info = found[name]
        assert info.shape == tuple(tensor.shape)
        assert data[info.offset : info.offset + info.nbytes] == tensor.numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b"", "claims 0 bytes"),
        (b"xx", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "integer has more than"),
        (b'{"a": ' + b"[" * 5000 + b"}", "deeper than"),
        (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":0}', "twice"),
        ({"a": 5}, "'a' is not complete"),
        ({"a": None}, "'a' is not complete"),
        ({"a": {}}, "'a' is not complete"),
        ({"a": entry(dtype=[])}, "unknown dtype"),
        ({"a": entry(dtype={})}, "unknown dtype"),
        ({"a": entry(dtype=5)}, "unknown dtype"),
        ({"a": entry(dtype="F4")}, "unknown dtype 'F4'"),
        ({"a": entry(shape="11")}, "do not fit"),
        ({"a": entry(shape={})}, "do not fit"),
        ({"a": entry(shape=[True])}, "do not fit"),
        ({"a": entry(shape=[-1, -1])}, "do not fit"),
        ({"a": entry(shape=[1.0])}, "do not fit"),
        ({"a": entry(shape=[2])}, "do not fit"),
        ({"a": entry(shape=[1] * 65)}, "no tensor can have"),
        ({"a": entry(shape=[10**19] * 60)}, "no tensor can have"),
        ({"a": entry(shape=[0, 10**19], offsets=[0, 0])}, "no tensor can have"),
        ({"a": entry(offsets=[0])}, "not complete"),
        ({"a": entry(offsets=[0, 1, 2])}, "not complete"),
        ({"a": entry(offsets="01")}, "do not fit"),
        ({"a": entry(offsets=[1, 0])}, "do not fit"),
        ({"a\x00b": entry()}, "no name"),
        ({"a\ud800": entry()}, "no name"),
        ({"\x1b[2J": entry()}, "no name"),
        ({"a": entry(), "b": entry()}, "overlaps"),
        ({"a": entry(offsets=[7, 8])}, "truncated"),
    ],
)  # fmt: skip
def test_a_header_that_is_none(header, match, tmp_path):
    path = written(tmp_path / "model.safetensors", header, b"x")
    with pytest.raises(CheckpointFileError, match=match) as caught:
        read_header(path)
    assert caught.value.path == path
    str(caught.value).encode()


@pytest.mark.parametrize("length", [0, 1, 17, 2**31, 2**63, 2**64 - 1])
def test_a_length_beyond_the_file(length, tmp_path):
    path = written(tmp_path / "model.safetensors", b'{"a":0}', length=length)
    with pytest.raises(CheckpointFileError, match=r"claims|not JSON|not complete"):
        read_header(path)


@pytest.mark.parametrize("size", range(8))
def test_a_file_without_a_length(size, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(CheckpointFileError, match="claims"):
        read_header(path)


def test_a_header_beyond_the_limit_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**30))
        file.truncate(2**31)
    with pytest.raises(CheckpointFileError, match="more than the limit"):
        read_header(path)


def test_many_empty_arrays_are_counted_before_they_are_made(tmp_path):
    path = written(tmp_path / "model.safetensors", b'{"a":[' + b"[]," * 5_000_000 + b"0]}")
    with pytest.raises(CheckpointFileError, match=r"limit of 4,000,000 values"):
        read_header(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [*ODD, "name"])
def test_what_is_no_regular_file(kind, tmp_path):
    path = make_odd(kind, tmp_path / "model.safetensors") if kind in ODD else tmp_path / "a\0b"
    with pytest.raises(CheckpointFileError, match=r"not a regular file|not a name") as caught:
        read_header(path)
    assert caught.value.path == path


def test_numbers_of_elements():
    assert element_count(()) == 1
    assert element_count((3, 0, 5)) == 0
    assert element_count((2, 3)) == 6
    assert element_count((10**15,) * 60) == MAX_ELEMENTS + 1

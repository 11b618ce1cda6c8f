"""A checkpoint and its store are origins alike: the same model, the same bytes, and what differs is said."""

import pytest
import torch

from coterie.extraction import extract
from coterie.origins import CheckpointOrigin, StoreOrigin
from coterie.spec.dense_schemes import DenseSchemes


def record(origin, key):
    buffer = bytearray(origin.layout(key).nbytes)
    origin.read_into(key, memoryview(buffer))
    return bytes(buffer)


@pytest.fixture
def both(moe, tmp_path):
    extract(moe, tmp_path / "store")
    return CheckpointOrigin.open(moe), StoreOrigin.open(tmp_path / "store")


def test_a_native_store_is_the_same_as_its_checkpoint(both):
    checkpoint, store = both
    for name in ("identity", "integrity", "made_from", "dense_schemes", "quantisation"):
        assert getattr(checkpoint, name) == getattr(store, name), name
    assert (checkpoint.model.name, checkpoint.model.class_name) == (store.model.name, store.model.class_name)
    assert (checkpoint.model.model_type, checkpoint.model.dtype) == (store.model.model_type, store.model.dtype)
    assert checkpoint.model.keymap.dense == store.model.keymap.dense
    assert checkpoint.model.banks == store.model.banks
    assert sorted(checkpoint.keys()) == sorted(store.keys())
    for bank in checkpoint.model.banks:
        assert checkpoint.sources(bank) == store.sources(bank)
    for key in checkpoint.keys():
        assert checkpoint.layout(key) == store.layout(key)
        assert checkpoint.scheme(key) == store.scheme(key) == "native"
        assert record(checkpoint, key) == record(store, key)
    assert checkpoint.side_files().keys() == store.side_files().keys()


def test_neither_is_the_other(both):
    checkpoint, store = both
    assert not isinstance(store, type(checkpoint))
    assert not isinstance(checkpoint, type(store))
    key = next(iter(store.keys()))
    assert (store.names_of(key), store.missing(["anything"]), store.cache) == ([], {}, None)
    assert checkpoint.names_of(key)
    assert checkpoint.checksum(key) is None
    assert store.checksum(key)


def test_what_is_lossy_says_so(moe, tmp_path):
    extract(moe, tmp_path / "store", scheme="int8", dense_scheme="int4")
    origin = StoreOrigin.open(tmp_path / "store")
    assert len(origin.made_from) == 32
    assert origin.dense_schemes == DenseSchemes("int4")
    assert {origin.scheme(key) for key in origin.keys()} == {"int8"}
    assert origin.linears
    for linear in origin.linears.values():
        assert linear.scheme.name == "int4"
        assert {linear.codes.name, linear.scales.name} <= origin.tensors.keys()
    assert origin.linears.keys() <= origin.model.keymap.dense.keys()
    assert origin.model.dtype == torch.bfloat16


def test_what_is_not_here_is_nowhere(moe, tmp_path):
    extract(moe, tmp_path / "store", experts="0:0;1:0")
    origin = StoreOrigin.open(tmp_path / "store")
    assert origin.model.banks == CheckpointOrigin.open(moe).model.banks
    absent = next(key for key in CheckpointOrigin.open(moe).keys() if key not in origin.keys())
    assert origin.extents(absent) is None

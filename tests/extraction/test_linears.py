"""Stores with linear layers in lossy schemes: bytes, resuming, growth, comparison with the checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from coterie.checkpoint import Checkpoint
from coterie.errors import QuantisationError, StoreError, UsageError
from coterie.extraction import extract
from coterie.extraction.dense import dense_tensors, quantised_linears
from coterie.inspection import inspect, verify
from coterie.origins import CheckpointOrigin
from coterie.quant import SCHEMES
from coterie.spec.dense_schemes import DenseSchemes
from coterie.spec.encodings import USUAL_SCHEMES
from coterie.store import Store, verify_store
from coterie.store.dense_writer import plan_shards
from store.faults import Killed, KillingCalls, WatchedCalls
from zoo import ZOO
from zoo.quantised import quantised

from .stores import snapshot
from .test_schemes import copied

BY_SCHEME = pytest.mark.parametrize("scheme", sorted(USUAL_SCHEMES))
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@BY_SCHEME
@pytest.mark.parametrize("name", ["gpt_oss", "jamba", "qwen3_moe", "qwen3_omni", "deepseek_v3"])
def test_every_family_is_stored_and_compares_with_its_checkpoint(
    name: str, scheme: str, zoo_checkpoint, tmp_path: Path
) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    directory = zoo_checkpoint(name, torch.bfloat16)
    extract(directory, tmp_path / "store", dense_scheme=scheme)
    assert Store.open(tmp_path / "store").manifest.dense_schemes == DenseSchemes(scheme)
    assert verify_store(tmp_path / "store").problems == ()
    report = verify(tmp_path / "store", against=directory)
    assert report.ok
    checkpoint = Checkpoint.open(directory)
    matrices = quantised_linears(CheckpointOrigin(checkpoint), DenseSchemes(scheme))
    assert report.compared_tensors == len(checkpoint.keymap.dense) + len(matrices)


def test_the_stock_library_reads_codes_scales_and_what_stays(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store", dense_scheme="int4")
    found = load_file(tmp_path / "store" / "dense.safetensors")
    checkpoint = Checkpoint.open(moe)
    for name, matrix in quantised_linears(CheckpointOrigin(checkpoint), DenseSchemes("int4")).items():
        assert name not in found
        for (field, _, _), part in zip(matrix.fields(), matrix.quantise(checkpoint.read(name)), strict=True):
            assert torch.equal(found.pop(field), part)
    assert (
        found.keys()
        == checkpoint.keymap.dense.keys() - quantised_linears(CheckpointOrigin(checkpoint), DenseSchemes("int4")).keys()
    )
    for name, value in found.items():
        assert torch.equal(value, checkpoint.read(name))


@BY_SCHEME
def test_same_bytes_whatever_the_number_of_threads_and_of_rows_at_once(
    scheme: str, moe: Path, tmp_path: Path, two_threads, monkeypatch
) -> None:
    extract(moe, tmp_path / "many", scheme=scheme, dense_scheme=scheme, workers=4)
    torch.set_num_threads(1)
    monkeypatch.setattr("coterie.extraction.linears._VALUES", 64 * 7)
    extract(moe, tmp_path / "one", scheme=scheme, dense_scheme=scheme, workers=1)
    assert snapshot(tmp_path / "many") == snapshot(tmp_path / "one")


def test_a_native_store_does_not_mention_it(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store", scheme="int4")
    extract(moe, tmp_path / "named", scheme="int4", dense_scheme="native")
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "named")
    assert b'"scheme":"int4","xxh3"' in (tmp_path / "store/coterie.json").read_bytes()
    assert Store.open(tmp_path / "store").manifest.dense_schemes == DenseSchemes("native")


def test_the_identity_of_the_model_stays_the_same(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "native")
    extract(moe, tmp_path / "int4", scheme="int4", dense_scheme="int4")
    native, int4 = (Store.open(tmp_path / name).manifest for name in ("native", "int4"))
    assert (native.model, native.source) == (int4.model, int4.source)


def test_stopped_at_every_change_of_the_disk(moe: Path, tmp_path: Path, monkeypatch) -> None:
    opened = Checkpoint.open(moe)
    monkeypatch.setattr(Checkpoint, "open", lambda *_args, **_options: opened)
    options = {"experts": "0", "dense_scheme": "int4", "workers": 1}
    counted = WatchedCalls()
    extract(moe, tmp_path / "fresh", **options, calls=counted)
    fresh = snapshot(tmp_path / "fresh")
    for at in range(0, counted.count, 3):
        path = tmp_path / "store"
        with pytest.raises(Killed):
            extract(moe, path, **options, calls=KillingCalls(at))
        extract(moe, path, **options)
        assert snapshot(path) == fresh, at
        shutil.rmtree(path)


def test_scales_are_the_same_without_the_codes_before_them(moe: Path) -> None:
    tensors = {tensor.name: tensor for tensor in dense_tensors(CheckpointOrigin.open(moe), DenseSchemes("int4"))}
    codes, scales = tensors[f"{Q_PROJ}_int4"], tensors[f"{Q_PROJ}_int4_scales"]
    alone = b"".join(scales.chunks())
    assert len(b"".join(codes.chunks())) == codes.nbytes
    assert b"".join(scales.chunks()) == alone
    assert len(alone) == scales.nbytes


def test_codes_lie_directly_before_their_scales_and_everything_is_aligned(moe: Path) -> None:
    shards = plan_shards(dense_tensors(CheckpointOrigin.open(moe), DenseSchemes("int4")), limit=20_000)
    assert len(shards) > 1
    for shard in shards:
        offset = 0
        for before, tensor in zip((None, *shard.tensors), shard.tensors, strict=False):
            assert offset % {"BF16": 2, "F32": 4}.get(tensor.dtype, 1) == 0
            offset += tensor.nbytes
            if tensor.name.endswith("_scales") and before is not None:
                assert tensor.name == f"{before.name}_scales"


def test_growing_keeps_the_scheme_and_refuses_another(moe: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    extract(moe, store, experts="0-2", dense_scheme="int4")
    dense = (store / "dense.safetensors").read_bytes()
    before = snapshot(store)
    with pytest.raises(StoreError, match="linear layers outside experts are there as int4, not int8"):
        extract(moe, store, dense_scheme="int8")
    assert snapshot(store) == before
    assert extract(moe, store, experts="0-4").status == "grown"
    assert (store / "dense.safetensors").read_bytes() == dense
    assert Store.open(store).manifest.dense_schemes == DenseSchemes("int4")
    assert verify(store, against=moe).ok


def test_an_interrupted_store_is_not_finished_in_another_scheme(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        extract(moe, tmp_path / "store", dense_scheme="int4", workers=1, calls=KillingCalls(30))
    with pytest.raises(StoreError, match="another plan: the dense schemes differ"):
        extract(moe, tmp_path / "store")
    assert extract(moe, tmp_path / "store", dense_scheme="int4").complete


def test_a_changed_weight_is_found_by_comparison(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store", dense_scheme="int4")
    other = copied(moe, tmp_path / "other", "layers.1.self_attn.k_proj", lambda value: value.mul(0.5))
    places = {problem.place for problem in verify(tmp_path / "store", against=other).problems if problem.place}
    name = "model.layers.1.self_attn.k_proj.weight_int4_scales"
    # Halving changes scales only; the other problems are of the file itself.
    assert name in places
    assert f"{name.removesuffix('_scales')}" not in places


def test_fp8_weights_are_dequantised_first(tmp_path: Path) -> None:
    directory = quantised("deepseek_v3", tmp_path / "checkpoint", torch.bfloat16)
    extract(directory, tmp_path / "store", dense_scheme="int8")
    assert verify(tmp_path / "store", against=directory).ok
    checkpoint = Checkpoint.open(directory)
    state = checkpoint.dense_state_dict()
    fp8 = [
        name
        for name in quantised_linears(CheckpointOrigin(checkpoint), DenseSchemes("int8"))
        if checkpoint.tensors[name].dtype == "F8_E4M3"
    ]
    assert len(fp8) > 5
    with safe_open(tmp_path / "store" / "dense.safetensors", "pt") as file:
        names = set(file.keys())
        for name in fp8:
            codes, scales = SCHEMES["int8"].quantise(state[name][...])
            assert torch.equal(file.get_tensor(f"{name}_int8"), codes)
            assert torch.equal(file.get_tensor(f"{name}_int8_scales"), scales)
            assert not {name, f"{name}_scale_inv"} & names


def test_fp8_weights_give_the_same_bytes_whatever_is_read_at_once(tmp_path: Path, monkeypatch) -> None:
    directory = quantised("deepseek_v3", tmp_path / "checkpoint", torch.bfloat16)
    extract(directory, tmp_path / "whole", dense_scheme="int4")
    monkeypatch.setattr("coterie.extraction.linears._VALUES", 1)
    extract(directory, tmp_path / "rows", dense_scheme="int4")
    assert snapshot(tmp_path / "whole") == snapshot(tmp_path / "rows")


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe_ragged", "gpt_oss"])
def test_quantised_checkpoints_run(name: str, tmp_path: Path, open_model) -> None:
    directory = quantised(name, tmp_path / "checkpoint", torch.bfloat16)
    extract(directory, tmp_path / "store", dense_scheme="int8")
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        want, got = (open_model(path)(input_ids=ids).logits.float() for path in (directory, tmp_path / "store"))
    # Wide: a token whose scores are close may be routed to another expert.
    assert (want - got).norm() < 0.2 * want.norm()
    found = inspect(tmp_path / "store").dense_memory_nbytes
    # What is not dequantised counts with the headers of its files.
    assert 0 <= found - open_model(tmp_path / "store").coterie.source.footprint.dense <= 16384


def test_weights_that_are_not_finite_are_refused_by_name_and_row(moe: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("coterie.extraction.linears._VALUES", 64 * 4)
    row = torch.tensor([9])
    damaged = copied(
        moe, tmp_path / "damaged", "layers.1.self_attn.o_proj", lambda value: value.index_fill_(0, row, torch.inf)
    )
    with pytest.raises(QuantisationError, match=r"Row 9 of model.layers.1.self_attn.o_proj.weight") as caught:
        extract(damaged, tmp_path / "store", dense_scheme="int4")
    assert (caught.value.tensor, caught.value.row) == ("model.layers.1.self_attn.o_proj.weight", 9)
    assert extract(damaged, tmp_path / "native").complete


def test_unknown_schemes(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int4"):
        extract(moe, tmp_path / "store", dense_scheme="int44")
    assert not (tmp_path / "store").exists()


def test_inspection_says_what_it_takes(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "store", dense_scheme="int8")
    extract(moe, tmp_path / "native")
    found, native = inspect(tmp_path / "store"), inspect(tmp_path / "native")
    assert (found.dense_scheme, native.dense_scheme, inspect(moe).dense_scheme) == ("int8", "native", "native")
    assert found.dense_memory_nbytes < native.dense_memory_nbytes
    assert found.minimum_nbytes < native.minimum_nbytes

"""Smaller stores made of stores: the bytes that extraction makes of the checkpoint, and what is refused."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

from coterie.errors import ChecksumError, LoadError, StoreError, UsageError
from coterie.extraction import extract, quantize
from coterie.extraction.quantising import scheme_of_store
from coterie.inspection import verify
from coterie.store import Store, verify_store
from engine.damage import edit_header, register
from store.faults import Killed, KillingCalls, WatchedCalls
from zoo import ZOO
from zoo.quantised import quantised

from .stores import present, snapshot

SCHEMES = [("int3", "int2"), ("int4", "int4"), ("int8", None), (None, "int8"), ("native", "int4")]


@pytest.mark.parametrize(("scheme", "dense"), SCHEMES)
@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "qwen3_moe", "qwen3_omni"])
def test_of_a_lossless_store_it_is_what_extraction_makes(
    name: str, scheme: str | None, dense: str | None, zoo_checkpoint, tmp_path: Path
) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    directory = zoo_checkpoint(name, torch.bfloat16)
    extract(directory, tmp_path / "native")
    # Extraction chooses for a model that speaks what nobody says; quantising leaves it as it is.
    extract(directory, tmp_path / "want", scheme=scheme, dense_scheme=dense or "native")
    report = quantize(tmp_path / "native", tmp_path / "got", scheme=scheme, dense_scheme=dense)
    assert report.complete
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")


def test_of_experts_that_are_modules_of_their_own(zoo_checkpoint, tmp_path: Path) -> None:
    from zoo.undecorated import UNDECORATED

    name = min(name for name in UNDECORATED if not UNDECORATED[name].why_not)
    from zoo import MATRIX, checkpoint

    assert name in MATRIX
    directory = checkpoint(name, torch.float32, tmp_path)
    extract(directory, tmp_path / "native")
    extract(directory, tmp_path / "want", scheme="int4", dense_scheme="int4")
    quantize(tmp_path / "native", tmp_path / "got", scheme="int4", dense_scheme="int4")
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")


def test_fp8_stores(tmp_path: Path) -> None:
    directory = quantised("deepseek_v3", tmp_path / "checkpoint", torch.bfloat16)
    extract(directory, tmp_path / "native")
    extract(directory, tmp_path / "want", scheme="int4", dense_scheme="int8")
    quantize(tmp_path / "native", tmp_path / "got", scheme="int4", dense_scheme="int8")
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")


def test_of_a_checkpoint_it_is_extraction(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "want", scheme="int4")
    quantize(moe, tmp_path / "got", scheme="int4")
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")


def test_the_selection_of_experts_is_kept_and_can_be_completed(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "some", experts="1,4-6", layers="1")
    before = snapshot(tmp_path / "some")
    report = quantize(tmp_path / "some", tmp_path / "got", scheme="int4")
    assert not report.complete
    assert present(tmp_path / "got") == present(tmp_path / "some")
    assert snapshot(tmp_path / "some") == before
    assert extract(moe, tmp_path / "got").status == "grown"
    assert scheme_of_store(Store.open(tmp_path / "got").manifest) == "int4"
    assert verify(tmp_path / "got", against=moe).ok


def test_bytes_of_mixed_stores_stay_where_the_scheme_does(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "mixed", experts="0-3", scheme="int8")
    extract(moe, tmp_path / "mixed", experts="4-7", scheme="int4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(tmp_path / "mixed", tmp_path / "dense", dense_scheme="int4")
    mixed, dense = Store.open(tmp_path / "mixed"), Store.open(tmp_path / "dense")
    assert {key: mixed.record(key).checksum for key in mixed.keys()} == {
        key: dense.record(key).checksum for key in dense.keys()
    }
    with pytest.warns(UserWarning, match="lossy already"):
        quantize(tmp_path / "mixed", tmp_path / "int4", scheme="int4")
    int4 = Store.open(tmp_path / "int4")
    assert scheme_of_store(int4.manifest) == "int4"
    for key in mixed.keys():
        same = mixed.record(key).checksum == int4.record(key).checksum
        assert same == (mixed.scheme(key) == "int4")


def test_int8_becomes_int4_of_the_rounded_weights(moe: Path, tmp_path: Path, open_model) -> None:
    extract(moe, tmp_path / "int8", scheme="int8", dense_scheme="int8")
    with pytest.warns(UserWarning, match="stays lost"):
        quantize(tmp_path / "int8", tmp_path / "int4", scheme="int4", dense_scheme="int4")
    assert verify_store(tmp_path / "int4").problems == ()
    extract(moe, tmp_path / "direct", scheme="int4", dense_scheme="int4")
    ids = torch.arange(3, 20)[None]
    logits = []
    with torch.no_grad():
        for name in ("int4", "direct", "int8"):
            logits.append(open_model(tmp_path / name)(input_ids=ids).logits.float())
    assert (tmp_path / "int4/dense.safetensors").stat().st_size == (
        tmp_path / "direct/dense.safetensors"
    ).stat().st_size
    assert not torch.equal(logits[0], logits[2])
    # Wide: a token whose scores are close may be routed to another expert.
    assert (logits[0] - logits[1]).norm() < 0.3 * logits[1].norm()


def test_more_bits_are_refused(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "int4", scheme="int4", dense_scheme="int4")
    for options in ({"scheme": "int8"}, {"dense_scheme": "int8"}, {"scheme": "native", "dense_scheme": "int8"}):
        with pytest.raises(UsageError, match=r"stored as int4; as .* larger and no better"):
            quantize(tmp_path / "int4", tmp_path / "got", **options)
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("options", [{}, {"scheme": "native"}, {"scheme": "native", "dense_scheme": "native"}])
def test_nothing_to_do_is_wrong_usage(options: dict[str, str], moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "native", experts="0")
    with pytest.raises(UsageError, match="Nothing is to be quantised"):
        quantize(tmp_path / "native", tmp_path / "got", **options)


def test_unknown_schemes_and_no_workers(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int4"):
        quantize(moe, tmp_path / "got", scheme="int44")
    with pytest.raises(UsageError, match="At least one worker"):
        quantize(moe, tmp_path / "got", scheme="int4", workers=0)


def test_a_store_is_not_written_into_itself(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "native", experts="0")
    for target in (tmp_path / "native", tmp_path / "native" / "small", tmp_path):
        with pytest.raises(UsageError):
            quantize(tmp_path / "native", target, scheme="int4")


@pytest.mark.parametrize("file", ["dense.safetensors", "experts/text/mlp-layer-001.safetensors"])
def test_damage_is_not_given_a_new_checksum(file: str, moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "native")
    path = tmp_path / "native" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    for scheme, dense in (("int4", None), (None, "int4")):
        with pytest.raises(ChecksumError):
            quantize(tmp_path / "native", tmp_path / "got", scheme=scheme, dense_scheme=dense, restart=True)
    assert not (tmp_path / "got" / "coterie.json").exists()


def test_stopped_and_repeated(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "native", experts="0-2")
    counted = WatchedCalls()
    options = {"scheme": "int4", "dense_scheme": "int4", "workers": 1}
    quantize(tmp_path / "native", tmp_path / "fresh", **options, calls=counted)
    for at in range(10, counted.count, 12):
        path = tmp_path / f"store-{at}"
        with pytest.raises(Killed):
            quantize(tmp_path / "native", path, **options, calls=KillingCalls(at))
        assert quantize(tmp_path / "native", path, **options).status in ("resumed", "written", "already complete")
        assert snapshot(path) == snapshot(tmp_path / "fresh")


def test_what_a_lossy_store_gives_is_not_mixed_with_the_checkpoint_s(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "int8", scheme="int8")
    with pytest.warns(UserWarning, match="lossy already"), pytest.raises(Killed):
        quantize(tmp_path / "int8", tmp_path / "got", scheme="int4", workers=1, calls=KillingCalls(40))
    with pytest.raises(StoreError, match="another plan: the source differ"):
        extract(moe, tmp_path / "got", scheme="int4")


def test_dry_run_writes_nothing(moe: Path, tmp_path: Path) -> None:
    extract(moe, tmp_path / "native")
    report = quantize(tmp_path / "native", tmp_path / "got", scheme="int4", dry_run=True)
    assert report.status == "planned"
    assert report.store_nbytes < sum(path.stat().st_size for path in (tmp_path / "native").rglob("*") if path.is_file())
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    ("name", "shape", "needed"), [("lm_head.weight", (64, 128), (128, 64)), ("model.norm.weight", (8, 8), (64,))]
)
def test_a_dense_tensor_of_another_shape_is_refused_before_anything_is_made(
    name: str, shape: tuple[int, ...], needed: tuple[int, ...], moe: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    extract(moe, store)
    register(edit_header(store / "dense.safetensors", lambda header: header[name].update(shape=shape)))
    assert verify_store(store).ok  # every checksum is right
    words = f"'{name}' has the shape {shape}, the model that {store / 'config.json'} describes needs {needed}"
    with pytest.raises(LoadError, match=re.escape(words)) as caught:
        quantize(store, tmp_path / "small", scheme="int4")
    assert (caught.value.path, caught.value.tensor) == (store / "config.json", name)
    assert not (tmp_path / "small").exists()

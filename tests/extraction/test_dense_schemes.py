"""Stores whose linear layers outside experts are in several schemes, by part of the model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from coterie.checkpoint import Checkpoint, TensorInfo
from coterie.errors import StoreError, UsageError
from coterie.extraction import extract, quantize
from coterie.extraction.four_bits import FourBits
from coterie.hf.linears import linear_weights
from coterie.inspection import inspect, verify
from coterie.origins import CheckpointOrigin, StoreOrigin
from coterie.store import Store, verify_store

from .stores import snapshot

SPEAKING = "attention=int8,head=int8,encoders=native,talker=int8,predictor=int8"
"""The parts of Qwen3-Omni: its language model has no dense MLPs and no shared experts."""
ROUNDED = [("attention", "int8"), ("head", "int4"), ("encoders", "int8"), ("talker", "int4"), ("predictor", "int8")]
OTHERS = [(part, {"int8": "int4", "int4": "int8"}[scheme]) for part, scheme in ROUNDED]


@pytest.fixture(scope="module")
def omni(zoo_checkpoint) -> Path:
    return zoo_checkpoint("qwen3_omni", torch.bfloat16)


def schemes(store: Path) -> str:
    return str(Store.open(store).manifest.dense_schemes)


@pytest.mark.parametrize(
    ("part", "scheme"), [*ROUNDED, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)]
)
@pytest.mark.filterwarnings("ignore:predictor=int4")
def test_one_part_is_rounded_and_every_other_tensor_is_the_checkpoints(
    part: str, scheme: str, omni: Path, tmp_path: Path
) -> None:
    extract(omni, tmp_path / "store", dense_scheme={part: scheme}, experts="0")
    assert f"{part}={scheme}" in schemes(tmp_path / "store")
    assert verify_store(tmp_path / "store").problems == ()
    assert verify(tmp_path / "store", against=omni).ok
    origin, checkpoint = StoreOrigin.open(tmp_path / "store"), Checkpoint.open(omni)
    parts = {name: weight.part for name, weight in linear_weights(checkpoint.skeleton, checkpoint.keymap).items()}
    assert {(parts[name], linear.scheme.name) for name, linear in origin.linears.items()} == {(part, scheme)}
    for name in checkpoint.keymap.dense.keys() - origin.linears.keys():
        assert content(origin.tensors[name]) == content(checkpoint.tensors[name])


def content(info: TensorInfo) -> bytes:
    with info.path.open("rb") as file:
        file.seek(info.offset)
        return file.read(info.nbytes)


def test_a_model_that_speaks_has_a_default_beside_rounded_experts(omni: Path, tmp_path: Path) -> None:
    def made(**options: object) -> str:
        return extract(omni, tmp_path / "store", dry_run=True, **options).dense_scheme

    assert made(scheme="int4") == SPEAKING
    assert made(scheme="int8", dense_scheme="encoders=int8") == SPEAKING.replace("native", "int8")
    assert made(scheme="int4", component="thinker") == "attention=int8,head=int8,encoders=native"
    assert made(scheme="int4", component="talker") == "talker=int8,predictor=int8"
    assert made() == made(scheme="int4", dense_scheme="native") == "native"
    assert made(scheme="int4", dense_scheme="int4") == "int4"


def test_what_four_bits_take_is_counted_with_the_default(omni: Path, moe: Path, tmp_path: Path) -> None:
    for checkpoint, dense_scheme in ((omni, None), (moe, "int4")):
        origin = CheckpointOrigin.open(checkpoint)
        chosen = dict.fromkeys(origin.model.banks, (0, 1))
        counted = FourBits.of(origin, chosen)
        assert counted is not None
        assert counted.dense_scheme == dense_scheme
        plan = {"scheme": "int4", "dense_scheme": dense_scheme, "experts": "0-1", "dry_run": True}
        report = extract(checkpoint, tmp_path / "store", **plan)
        tensors = sum(file.nbytes for file in report.files if file.file.endswith(".safetensors"))
        # Files have headers, too.
        assert 0 < tensors - counted.nbytes < len(report.files) * 2**15


def test_other_models_have_none(moe: Path, tmp_path: Path) -> None:
    assert extract(moe, tmp_path / "store", scheme="int4", dry_run=True).dense_scheme == "native"


def test_one_scheme_for_all_is_a_store_as_it_always_was(omni: Path, tmp_path: Path) -> None:
    extract(omni, tmp_path / "store", dense_scheme="int8", experts="0")
    manifest = json.loads((tmp_path / "store" / "coterie.json").read_text())
    assert (manifest["version"], manifest["dense"]["scheme"]) == (1, "int8")
    assert "schemes" not in manifest["dense"]
    rounded = StoreOrigin.open(tmp_path / "store").linears
    assert not [name for name in rounded if "code_predictor" in name or "code2wav" in name]
    # It grows as it is, whether or not anybody says so.
    extract(omni, tmp_path / "store", dense_scheme="int8", experts="0-1")
    extract(omni, tmp_path / "store", experts="0-2")
    assert schemes(tmp_path / "store") == "int8"
    assert verify(tmp_path / "store", against=omni).ok


def test_a_store_grows_in_the_schemes_that_it_has(moe: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    extract(moe, store, experts="0-2", dense_scheme="attention=int8,head=int4")
    assert json.loads((store / "coterie.json").read_text())["version"] == 2
    assert extract(moe, store, experts="0-4").status == "grown"
    assert extract(moe, store, experts="0-5", dense_scheme="head=int4").status == "grown"
    assert extract(moe, store, experts="0-5", dense_scheme={"attention": "int8"}).status == "already complete"
    for other in ("int8", "head=int8", "rest=native"):
        with pytest.raises(StoreError, match=r"there as attention=int8,head=int4, not .*never rewritten in place"):
            extract(moe, store, experts="0-6", dense_scheme=other)
    assert schemes(store) == "attention=int8,head=int4"
    assert verify(store, against=moe).ok


def test_a_store_is_quantised_part_by_part(omni: Path, tmp_path: Path) -> None:
    extract(omni, tmp_path / "native", experts="0-1")
    report = quantize(tmp_path / "native", tmp_path / "got", scheme="int4", dense_scheme="talker=int8,predictor=int8")
    wanted = "attention=native,head=native,encoders=native,talker=int8,predictor=int8"
    assert report.dense_scheme == wanted
    extract(omni, tmp_path / "want", experts="0-1", scheme="int4", dense_scheme=wanted)
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")
    # What is not named stays as it is, also if it is rounded.
    with pytest.warns(UserWarning, match="is lossy already"):
        quantize(tmp_path / "got", tmp_path / "smaller", dense_scheme="encoders=int8,talker=int4")
    assert schemes(tmp_path / "smaller") == "attention=native,head=native,encoders=int8,talker=int4,predictor=int8"
    for part in ("talker", "predictor"):
        with pytest.raises(UsageError, match=f"part '{part}' are stored as int8; as native they would be larger"):
            quantize(tmp_path / "got", tmp_path / "no", dense_scheme=f"{part}=native,head=int8")
    assert not (tmp_path / "no").exists()


def test_the_code_predictor_of_a_store_is_rounded_later(omni: Path, tmp_path: Path) -> None:
    extract(omni, tmp_path / "old", experts="0", dense_scheme="int4")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing is rounded twice
        quantize(tmp_path / "old", tmp_path / "got", dense_scheme="predictor=int8")
    extract(omni, tmp_path / "want", experts="0", dense_scheme="predictor=int8,rest=int4")
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")


def test_a_checkpoint_is_quantised_without_defaults(omni: Path, tmp_path: Path) -> None:
    assert quantize(omni, tmp_path / "experts", scheme="int4", dry_run=True).dense_scheme == "native"
    part = quantize(omni, tmp_path / "part", scheme="int4", dense_scheme="head=int8", dry_run=True)
    assert part.dense_scheme == "attention=native,head=int8,encoders=native,talker=native,predictor=native"
    with pytest.raises(UsageError, match="Nothing is to be quantised"):
        quantize(omni, tmp_path / "none", dense_scheme="head=native,encoders=native")


def test_parts_that_are_not_there_and_parts_that_nobody_knows(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Qwen3MoeForCausalLM has no part 'talker'.* It has: 'attention', 'head'\."):
        extract(moe, tmp_path / "store", dense_scheme="talker=int8")
    with pytest.raises(UsageError, match=r"Unknown part 'heads'. Did you mean 'head'"):
        extract(moe, tmp_path / "store", dense_scheme={"heads": "int8"})
    assert not (tmp_path / "store").exists()


def test_four_bits_for_the_code_predictor_are_warned_of(omni: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"predictor=int4: four bits there .*598"):
        extract(omni, tmp_path / "store", dense_scheme="predictor=int4", dry_run=True)


def test_inspection_says_what_each_part_takes(omni: Path, tmp_path: Path) -> None:
    extract(omni, tmp_path / "store", scheme="int4")
    assert verify(tmp_path / "store", against=omni).ok
    store, checkpoint = inspect(tmp_path / "store"), inspect(omni)
    assert store.dense_scheme == SPEAKING
    assert sum(part.nbytes for part in checkpoint.dense_parts) == checkpoint.dense_nbytes
    # Where whole files are counted, their headers are, too.
    assert 0 <= store.dense_nbytes - sum(part.nbytes for part in store.dense_parts) < 64 * 2**10
    ours, theirs = ({part.part: part for part in one.dense_parts} for one in (store, checkpoint))
    assert list(ours) == list(theirs)
    assert list(ours) == [
        *("attention", "head", "encoders", "talker", "predictor"),
        *("vocoder", "embeddings", "routers", "norms"),
    ]
    assert [part for part, facts in ours.items() if "int8" in facts.schemes] == [
        "attention", "head", "talker", "predictor",
    ]  # fmt: skip
    for part, facts in ours.items():
        assert facts.nbytes == sum(facts.schemes.values())
        assert theirs[part].schemes == {"native": theirs[part].nbytes}
        assert (facts.nbytes < theirs[part].nbytes) == ("int8" in facts.schemes)

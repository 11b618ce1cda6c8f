"""FP8 and MXFP4 checkpoints: kept as they are, computed with as stock transformers does that dequantises them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedModel

from conftest import realigned
from coterie.checkpoint import Checkpoint
from coterie.engine import load
from coterie.errors import (
    CheckpointFileError,
    TensorMissingError,
    UnclaimedTensorError,
    UnsupportedError,
)
from coterie.extraction import extract
from coterie.inspection import inspect, verify
from coterie.spec import ExpertKey
from coterie.store import Store
from zoo import logits
from zoo.quantised import FP8_CONFIG, quantised, rewrite, stock_dequantised

NAMES = ["qwen3_moe", "deepseek_v3", "qwen3_moe_ragged", "gpt_oss"]
DTYPES = [torch.bfloat16, torch.float32]
BY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])

# Earlier releases dequantise FP8 dense weights only, and give no experts at all.
_STOCK_FP8 = Version(transformers.__version__) >= Version("5.23")
needs_stock_fp8 = pytest.mark.skipif(not _STOCK_FP8, reason="this transformers cannot dequantise FP8 experts")

INPUTS = {"input_ids": torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(0))}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("quantised")

    def make(name: str, dtype: torch.dtype = torch.bfloat16) -> Path:
        directory = root / f"{name}-{dtype}"
        return directory if directory.exists() else quantised(name, directory, dtype)

    return make


@pytest.fixture(scope="module")
def stores(checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("stores")

    def make(name: str, dtype: torch.dtype = torch.bfloat16) -> Path:
        directory = root / f"{name}-{dtype}"
        if not directory.exists():
            extract(checkpoints(name, dtype), directory)
        return directory

    return make


@pytest.fixture(scope="module")
def stock_models(checkpoints: Callable[..., Path]) -> Callable[..., PreTrainedModel]:
    models: dict[tuple[str, torch.dtype], PreTrainedModel] = {}

    def make(name: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
        if (name, dtype) not in models:
            models[name, dtype] = realigned(stock_dequantised(checkpoints(name, dtype), dtype))
        return models[name, dtype]

    return make


def written(directory: Path, name: str, edit) -> Path:
    """A quantised checkpoint with its tensors changed."""
    quantised(name, directory)
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    return rewrite(directory, edit, config)


@needs_stock_fp8
@pytest.mark.parametrize("kind", ["store", "checkpoint"])
@BY_DTYPE
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_tokens_are_those_of_stock_dequantised(
    name, dtype, kind, checkpoints, stores, stock_models, open_model
):
    source = stores(name, dtype) if kind == "store" else checkpoints(name, dtype)
    model, stock = open_model(source, expert_memory="30%"), stock_models(name, dtype)
    assert model.dtype == dtype
    assert torch.equal(logits(model, INPUTS), logits(stock, INPUTS))
    # One token at a time goes another way.
    options = {"max_new_tokens": 8, "do_sample": False}
    ids = INPUTS["input_ids"][:1]
    assert torch.equal(model.generate(ids, **options), stock.generate(ids, **options))


@needs_stock_fp8
def test_scales_that_are_powers_of_two(tmp_path, open_model):
    directory = quantised("qwen3_moe", tmp_path / "checkpoint", scale_fmt="ue8m0")
    extract(directory, tmp_path / "store")
    assert {field.dtype for field in layout(tmp_path / "store").fields} == {"F8_E4M3", "F8_E8M0"}
    stock = realigned(stock_dequantised(directory))
    assert torch.equal(logits(open_model(tmp_path / "store"), INPUTS), logits(stock, INPUTS))


@needs_stock_fp8
def test_weights_with_one_scale_each(tmp_path, open_model):
    def flatten(tensors):
        return {
            name: tensor.amax().reshape(()) if name.endswith("_scale_inv") else tensor
            for name, tensor in tensors.items()
        }

    directory = written(tmp_path / "checkpoint", "qwen3_moe", flatten)
    extract(directory, tmp_path / "store")
    stock = realigned(stock_dequantised(directory))
    assert torch.equal(logits(open_model(tmp_path / "store"), INPUTS), logits(stock, INPUTS))


def test_experts_fused_in_one_tensor(checkpoints, tmp_path, open_model):
    """What transformers would find under the names that it gives fused experts, scales included."""

    def fuse(tensors):
        fused = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
        for layer in (0, 1):
            stem = f"model.layers.{layer}.mlp.experts"
            for end in ("weight", "weight_scale_inv"):
                gate, up, down = (
                    torch.stack([tensors[f"{stem}.{e}.{part}_proj.{end}"].view(torch.uint8) for e in range(8)])
                    for part in ("gate", "up", "down")
                )
                like = tensors[f"{stem}.0.up_proj.{end}"].dtype
                fused[f"{stem}.gate_up_proj{end.removeprefix('weight')}"] = torch.cat([gate, up], 1).view(like)
                fused[f"{stem}.down_proj{end.removeprefix('weight')}"] = down.view(like)
        return fused

    directory = written(tmp_path / "fused", "qwen3_moe", fuse)
    assert Checkpoint.open(directory).extents(next(iter(Checkpoint.open(directory).keys()))) is not None
    apart = open_model(checkpoints("qwen3_moe"))
    assert torch.equal(logits(open_model(directory), INPUTS), logits(apart, INPUTS))


@pytest.mark.parametrize("name", NAMES)
def test_a_store_is_no_larger_than_its_checkpoint(name, checkpoints, stores):
    source = Checkpoint.open(checkpoints(name))
    store = Store.open(stores(name))
    ours = layout(store.path)
    for key in source.keys():
        held = sum(source.tensors[part].nbytes for part in source.names_of(key))
        if name == "gpt_oss":  # all experts in one tensor
            held //= source.banks[key.bank_key].bank.num_experts
        assert ours.payload_nbytes == held
    weights = (source.location.directory / "model.safetensors").stat().st_size
    assert sum(store.manifest.file_sizes.values()) - small_files(store) <= weights * 1.02


def small_files(store: Store) -> int:
    return sum(facts.nbytes for facts in store.manifest.files)


def record(store: Store, key: ExpertKey) -> bytes:
    (extent,) = store.extents(key)
    return extent.source.path.read_bytes()[extent.offset : extent.offset + extent.nbytes]


def layout(store: Path):
    (found,) = Store.open(store).manifest.layouts.values()
    return found


def test_records_hold_weights_and_scales_as_they_are(stores, checkpoints):
    found = layout(stores("qwen3_moe"))
    assert found.name == "gate_up|gate_up_scale|down|down_scale;fp8"
    assert [(field.name, field.dtype, field.shape) for field in found.fields] == [
        ("gate_up_proj", "F8_E4M3", (512, 256)),
        ("gate_up_proj_scale_inv", "F32", (4, 2)),
        ("down_proj", "F8_E4M3", (256, 256)),
        ("down_proj_scale_inv", "F32", (2, 2)),
    ]
    found = layout(stores("gpt_oss"))
    assert found.name == (
        "gate_up_blocks|gate_up_scales|gate_up_bias|down_blocks|down_scales|down_bias;transposed+interleaved;mxfp4"
    )
    assert [(field.name, field.dtype, field.shape) for field in found.fields] == [
        ("gate_up_proj_blocks", "U8", (384, 8, 16)),
        ("gate_up_proj_scales", "U8", (384, 8)),
        ("gate_up_proj_bias", "BF16", (384,)),
        ("down_proj_blocks", "U8", (256, 6, 16)),
        ("down_proj_scales", "U8", (256, 6)),
        ("down_proj_bias", "BF16", (256,)),
    ]
    for name in ("qwen3_moe", "gpt_oss"):
        store, source = Store.open(stores(name)), Checkpoint.open(checkpoints(name))
        for key in store.keys():
            assert store.scheme(key) == "native"
            # Decoded by transformers' conversions, and read as bytes where they lie: the same.
            record = memoryview(bytearray(source.layout(key).nbytes))
            source.read_into(key, record)
            ours = memoryview(bytearray(store.layout(key).nbytes))
            (extent,) = store.extents(key)
            with extent.source.path.open("rb") as file:
                file.seek(extent.offset)
                file.readinto(ours)
            assert bytes(ours) == bytes(record)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_the_native_bytes_are_verified_against_the_checkpoint(name, stores, checkpoints, tmp_path):
    assert verify(stores(name), against=checkpoints(name)).ok
    directory = tmp_path / "other"
    shutil.copytree(checkpoints(name), directory)

    def change(tensors):
        part = next(
            n for n in tensors if n.endswith(("experts.3.up_proj.weight_scale_inv", "1.mlp.experts.down_proj_scales"))
        )
        tensors[part].view(torch.uint8).view(-1)[-1] ^= 1
        return tensors

    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    rewrite(directory, change, config)
    report = verify(stores(name), against=directory)
    assert not report.ok
    assert "text/mlp-layer-00" in str(report.problems[0].place) or "layer-00" in str(report.problems[0])


def test_sizes_count_what_is_stored_and_what_is_loaded(checkpoints, stores, open_model):
    for model in (checkpoints("qwen3_moe"), stores("qwen3_moe")):
        report = inspect(model)
        (bank, *_) = report.banks
        assert bank.schemes == {"native": 8}
        assert bank.encodings == ("fp8",)
        # In memory the dense part has two bytes per weight; on disk most of it has one.
        source = Checkpoint.open(checkpoints("qwen3_moe"))
        parameters = sum(p.numel() for p in source.skeleton.parameters())
        experts = sum(8 * 3 * 256 * 256 for _ in source.banks)
        assert report.dense_memory_nbytes == 2 * (parameters - experts)
        assert report.dense_nbytes < report.dense_memory_nbytes
        opened = open_model(model, expert_memory="50%")
        assert opened.coterie.stats().capacity <= report.expert_nbytes


def test_dense_weights_with_smaller_blocks_at_the_edge(tmp_path, open_model):
    """As DeepSeek-V3's latent projections are: 4.5 blocks high. transformers cannot load them on a CPU."""
    directory = tmp_path / "checkpoint"
    quantised("deepseek_v3", directory)
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    whole: dict[str, torch.Tensor] = {}

    def cut(tensors):
        # 192 rows in blocks of 40: the fifth is smaller, and 192 does not divide by 5.
        weight = tensors[name].float()
        scales = torch.tensor([[0.5], [0.25], [2.0], [4.0], [8.0]])
        tensors[f"{name}_scale_inv"] = scales.repeat(1, 2)
        whole[name] = (weight * scales.repeat_interleave(40, 0)[:192].repeat(1, 256)).to(torch.bfloat16)
        return tensors

    config = FP8_CONFIG | {"weight_block_size": [40, 128]}
    rewrite(directory, cut, config)
    model = open_model(directory)
    assert torch.equal(model.get_parameter(name), whole[name])


def test_experts_that_do_not_divide_into_blocks_are_refused(tmp_path):
    def cut(tensors):
        name = next(n for n in tensors if n.endswith("experts.0.down_proj.weight_scale_inv"))
        for expert in range(8):
            tensors[name.replace("experts.0", f"experts.{expert}")] = torch.ones(3, 2)
        return tensors

    with pytest.raises(CheckpointFileError, match="whole blocks"):
        load(written(tmp_path / "checkpoint", "qwen3_moe", cut))


def test_lost_scales_are_named(tmp_path):
    def lose(tensors):
        del tensors["model.layers.1.mlp.experts.5.up_proj.weight_scale_inv"]
        return tensors

    with pytest.raises(TensorMissingError, match=re.escape("experts.5.up_proj.weight_scale_inv")):
        load(written(tmp_path / "fp8", "qwen3_moe", lose))


def test_lost_blocks_are_named(tmp_path):
    def lose(tensors):
        del tensors["model.layers.1.mlp.experts.down_proj_blocks"]
        return tensors

    with pytest.raises((TensorMissingError, UnclaimedTensorError), match=re.escape("experts.down_proj")):
        load(written(tmp_path / "mxfp4", "gpt_oss", lose))


def test_experts_in_two_forms_are_refused(tmp_path):
    def mix(tensors):
        name = "model.layers.1.mlp.experts.5.up_proj.weight"
        tensors[name] = tensors[name].float().to(torch.bfloat16)
        del tensors[f"{name}_scale_inv"]
        return tensors

    with pytest.raises(CheckpointFileError, match="is quantised, and"):
        load(written(tmp_path / "checkpoint", "qwen3_moe", mix))


def test_packed_integers_are_refused(tmp_path):
    def pack(tensors):
        return {n: t.view(torch.int8) if t.dtype == torch.float8_e4m3fn else t for n, t in tensors.items()}

    with pytest.raises(UnsupportedError, match="quantised to I8"):
        load(written(tmp_path / "checkpoint", "qwen3_moe", pack))


def test_scales_of_activations_are_ignored_and_listed(tmp_path, checkpoints, open_model):
    def add(tensors):
        names = [n for n in tensors if n.endswith("_proj.weight")]
        return tensors | {n.removesuffix("weight") + "activation_scale": torch.ones(()) for n in names}

    directory = written(tmp_path / "checkpoint", "qwen3_moe", add)
    report = extract(directory, tmp_path / "store")
    assert "model.layers.0.mlp.experts.0.up_proj.activation_scale" in report.ignored
    plain = open_model(checkpoints("qwen3_moe"))
    assert torch.equal(logits(open_model(tmp_path / "store"), INPUTS), logits(plain, INPUTS))


def test_the_scales_of_ignored_tensors_are_ignored_with_them(tmp_path):
    def add(tensors):
        layer = {n.replace("layers.1.", "layers.61."): t.clone() for n, t in tensors.items() if "layers.1." in n}
        return tensors | layer

    directory = written(tmp_path / "checkpoint", "deepseek_v3", add)
    source = Checkpoint.open(directory)
    extra = [name for name in source.tensors if "layers.61." in name]
    assert any(name.endswith("_scale_inv") for name in extra)
    assert source.keymap.ignored == sorted(extra)


def test_a_partial_store_of_a_quantised_checkpoint_grows(tmp_path, checkpoints, stores, open_model):
    extract(checkpoints("qwen3_moe"), tmp_path / "store", experts="0-3")
    extract(checkpoints("qwen3_moe"), tmp_path / "store")
    assert verify(tmp_path / "store", against=checkpoints("qwen3_moe")).ok
    whole = open_model(stores("qwen3_moe"))
    assert torch.equal(logits(open_model(tmp_path / "store"), INPUTS), logits(whole, INPUTS))


@pytest.mark.parametrize("name", NAMES)
def test_absent_experts_are_fetched_as_they_are(name, tmp_path, checkpoints, stores, open_model):
    """The logits of the full store; what the partial one comes to hold is what extracting it would have written."""
    source, path = checkpoints(name), tmp_path / "store"
    extract(source, path, experts="0")
    model, whole = open_model(path, missing="fetch", source=source, expert_memory="50%"), open_model(stores(name))
    assert torch.equal(logits(model, INPUTS), logits(whole, INPUTS))
    ids, options = INPUTS["input_ids"][:1], {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), whole.generate(ids, **options))
    fetched = model.coterie.stats().fetched
    assert fetched.experts > 2
    assert model.coterie.stats().total.absent == 0
    model.coterie.close()
    assert verify(path, against=source).ok
    grown = Store.open(path)
    assert (
        len(grown.keys())
        == len(grown.banks) + fetched.experts
        == len(grown.banks) + model.coterie.stats().fetched.added
    )
    by_layer = {bank.layer: [key.expert for key in grown.keys() if key.bank_key == bank] for bank in grown.banks}
    extract(source, tmp_path / "direct", experts=by_layer)
    direct = Store.open(tmp_path / "direct")
    assert sorted(direct.keys()) == sorted(grown.keys())
    assert all(direct.layout(key) == grown.layout(key) for key in direct.keys())
    assert all(record(direct, key) == record(grown, key) for key in direct.keys())


def test_the_plan_provides_for_decoded_experts_that_are_fetched(tmp_path, checkpoints, open_model):
    extract(checkpoints("gpt_oss"), tmp_path / "store", experts="0")
    options = {"memory": "4GiB", "max_context": 64}
    buffers = {
        missing: open_model(tmp_path / "store", missing=missing, source=source, **options).coterie.plan.io_buffers
        for missing, source in (("drop", None), ("fetch", checkpoints("gpt_oss")))
    }
    assert buffers["drop"] >= 2 * (2 * 3 * 256 * 192)
    assert buffers["fetch"] >= buffers["drop"] + 8 * layout(tmp_path / "store").nbytes


def test_the_plan_provides_for_decoded_experts(stores, open_model):
    model = open_model(stores("qwen3_moe"), memory="4GiB", max_context=64)
    assert model.coterie.plan.io_buffers == 2 * (2 * 3 * 256 * 256)

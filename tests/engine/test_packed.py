"""Checkpoints whose weights are packed: run, extracted, compared with stock transformers, and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import realigned
from coterie import native
from coterie.checkpoint import Checkpoint
from coterie.errors import CheckpointFileError, UnsupportedError, UsageError
from coterie.extraction import extract
from coterie.inspection import inspect, verify
from coterie.integration import quantised
from coterie.kernels import dense
from coterie.quant import SCHEMES
from coterie.spec import BankKey
from coterie.store import Store
from zoo import logits
from zoo.files import stock
from zoo.packed import Packed, packed

CASES = {
    "w4a16": (Packed(kind="compressed-tensors", group=32), "int4-g32-sym"),
    "w4a16-asym": (Packed(kind="compressed-tensors", group=64, symmetric=False), "int4-zp"),
    "w4a16-channel": (Packed(kind="compressed-tensors", group=None), "int4-g128-sym"),
    "w8a16": (Packed(kind="compressed-tensors", bits=8, group=128), "int8-g128"),
    "gptq": (Packed(kind="gptq", scale_dtype=torch.float16), "int4-g128-sym-f16"),
    "gptq-asym": (Packed(kind="gptq_v2", symmetric=False, group=64), "int4-zp"),
    "auto-round": (Packed(kind="auto-round", bits=8, scale_dtype=torch.float16), "int8-g128-f16"),
    "awq": (Packed(kind="awq", symmetric=False, scale_dtype=torch.float16), "int4-g128-zp-f16"),
    "nvfp4": (Packed(kind="nvfp4", group=16), "nvfp4"),
    "mlx": (Packed(kind="mlx", group=64, kept=("norm",)), "int4"),
    "mlx-8": (Packed(kind="mlx", bits=8, group=32), "int8-g32-zero-f32"),
}
INPUTS = {"input_ids": torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(0))}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}

    def make(case: str) -> tuple[Path, Path]:
        if case not in made:
            made[case] = packed(CASES[case][0], tmp_path_factory.mktemp(case))
        return made[case]

    return make


@pytest.fixture(scope="module")
def stores(checkpoints, tmp_path_factory):
    made = {}

    def make(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp("stores") / case
            report = extract(checkpoints(case)[0], made[case])
            assert report.rounded.zeros == 0
        return made[case]

    return make


@pytest.fixture
def by_torch(monkeypatch):
    """Weights are dequantised and computed with by torch, with its bits; native code adds up in another order."""
    for module in (quantised, dense):
        monkeypatch.setattr(module, "library", lambda: None)


def written(source: Path, directory: Path, edit=None, **config) -> Path:
    """A copy of a packed checkpoint with other tensors, or other settings of its quantisation."""
    shutil.copytree(source, directory)
    if edit is not None:
        tensors = edit(load_file(source / "model.safetensors"))
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((directory / "config.json").read_text())
    raw.get("quantization_config", {}).update(config)
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_dequantised_weights(case, checkpoints, stores, open_model, by_torch):
    checkpoint, plain = checkpoints(case)
    wanted = logits(realigned(stock(plain, torch.bfloat16)), INPUTS)
    assert torch.equal(logits(open_model(stores(case)), INPUTS), wanted)
    assert torch.equal(logits(open_model(checkpoint), INPUTS), wanted)


@pytest.mark.parametrize("case", ["w4a16", "nvfp4", "gptq", "awq"])
def test_native_code_computes_with_them(case, checkpoints, stores, open_model):
    if native.library() is None:
        pytest.skip("the native library is not built")
    checkpoint, plain = checkpoints(case)
    model, direct = open_model(stores(case)), open_model(checkpoint)
    wanted = logits(stock(plain, torch.bfloat16), INPUTS).float().flatten(0, -2)
    for one in (model, direct):
        got = logits(one, INPUTS).float().flatten(0, -2)
        # Of the token in the middle: where scores are close, rounding sends a token to another expert.
        assert float(((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median()) < 0.03


@pytest.mark.parametrize("case", CASES)
def test_a_store_has_the_weights_bit_for_bit(case, checkpoints, stores):
    checkpoint, plain = checkpoints(case)
    store, weights = Store.open(stores(case)), load_file(plain / "model.safetensors")
    scheme = CASES[case][1]
    bank = BankKey("text", 0, "mlp")
    assert {store.scheme(key) for key in store.keys()} == {scheme}
    assert store.manifest.version == (1 if scheme == "int4" else 5)
    key = bank.expert(3)
    layout = store.layout(key)
    record = memoryview(bytearray(layout.nbytes))
    store.read_into(key, record)
    codes, scales = layout.fields[-2:]
    parts = [torch.frombuffer(record[f.offset : f.offset + f.nbytes], dtype=native.PART_DTYPES[f.dtype]).view(f.shape)
             for f in (codes, scales)]  # fmt: skip
    found = SCHEMES[scheme].dequantise(tuple(parts), 128, torch.bfloat16)
    assert torch.equal(found, weights["model.layers.0.mlp.experts.3.down_proj.weight"])
    assert "quantiz" not in (stores(case) / "config.json").read_text()
    result = verify(stores(case), against=checkpoint)
    assert result.problems == ()
    assert result.compared_experts == len(store.keys())


@pytest.mark.parametrize("case", ["w4a16", "nvfp4", "mlx"])
def test_inspecting_says_schemes_and_bytes(case, checkpoints, stores):
    checkpoint, _ = checkpoints(case)
    report = inspect(checkpoint)
    assert report.banks[0].schemes == {CASES[case][1]: 8}
    assert CASES[case][1] in report.dense_scheme
    held = load_file(checkpoint / "model.safetensors").items()
    dense = [t.nbytes for name, t in held if ".experts." not in name and "switch_mlp" not in name]
    ends = ("weight_shape", "input_global_scale")
    unused = [t.nbytes for name, t in held if "attn" in name and name.endswith(ends)]
    assert report.dense_nbytes == sum(dense) - sum(unused)
    assert sum(part.nbytes for part in report.dense_parts) == report.dense_nbytes
    store = inspect(stores(case))
    # Dense weights are dequantised when a checkpoint is opened, and stay as they are in a store.
    assert store.dense_memory_nbytes < report.dense_memory_nbytes
    assert store.expert_nbytes == report.expert_nbytes
    planned = inspect(checkpoint, dense_scheme="native")
    assert planned.dense_nbytes == store.dense_nbytes
    assert planned.dense_memory_nbytes == store.dense_memory_nbytes
    assert [one.schemes for one in planned.dense_parts] == [one.schemes for one in store.dense_parts]


def test_a_store_that_lacks_experts_fetches_them(checkpoints, stores, tmp_path, open_model):
    checkpoint, _ = checkpoints("gptq")
    extract(checkpoint, tmp_path / "store", experts="0-1")
    model = open_model(tmp_path / "store", missing="fetch", source=checkpoint)
    assert torch.equal(logits(model, INPUTS), logits(open_model(stores("gptq")), INPUTS))
    model.coterie.close()
    grown = Store.open(tmp_path / "store")
    assert {grown.scheme(key) for key in grown.keys()} == {"int4-g128-sym-f16"}
    assert verify(tmp_path / "store", against=checkpoint).problems == ()


def test_quantised_a_second_time_only_to_fewer_bits(checkpoints, tmp_path):
    checkpoint, _ = checkpoints("w4a16")
    for scheme in ("int4", "int8", "int4-g128"):
        with pytest.raises(UsageError, match="rounded a second time"):
            extract(checkpoint, tmp_path / "store", scheme=scheme)
    with pytest.raises(UsageError, match="part 'attention' are quantised already"):
        extract(checkpoint, tmp_path / "store", dense_scheme="int8")
    with pytest.warns(UserWarning, match="errors of both"):
        extract(checkpoint, tmp_path / "store", scheme="int3")
    store = Store.open(tmp_path / "store")
    assert {store.scheme(key) for key in store.keys()} == {"int3"}
    assert verify(tmp_path / "store", against=checkpoint).problems == ()
    with pytest.warns(UserWarning, match="errors of both"):
        report = extract(checkpoint, tmp_path / "dense", dense_scheme={"attention": "int2", "head": "int8"})
    assert report.dense_scheme == "attention=int2,head=int8"
    assert verify(tmp_path / "dense", against=checkpoint).problems == ()


def test_what_is_not_packed_can_be_quantised_beside(checkpoints, tmp_path):
    checkpoint, _ = checkpoints("w4a16")
    report = extract(checkpoint, tmp_path / "store", dense_scheme={"head": "int8"})
    assert report.dense_scheme == "attention=int4-g32-sym,head=int8"
    assert verify(tmp_path / "store", against=checkpoint).problems == ()


def test_experts_alone_may_be_packed(tmp_path, open_model):
    how = Packed(kind="gptq", kept=("embed_tokens", "lm_head", "norm", "mlp.gate.", "self_attn"))
    checkpoint, plain = packed(how, tmp_path / "made")
    report = extract(checkpoint, tmp_path / "store")
    assert report.dense_scheme == "native"
    held, kept = (load_file(path) for path in (plain / "model.safetensors", tmp_path / "store" / "dense.safetensors"))
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(held[name], kept[name])
    assert verify(tmp_path / "store", against=checkpoint).problems == ()


def test_layers_of_a_part_in_two_schemes(tmp_path, open_model, by_torch):
    """The scheme of more bytes is the part's; the others are dequantised, which loses nothing."""
    kept = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "layers.1.self")
    how = Packed(kind="compressed-tensors", group=32, kept=kept)
    checkpoint, plain = packed(how, tmp_path / "made")
    assert extract(checkpoint, tmp_path / "store").dense_scheme == "attention=int4-g32-sym,head=native"
    names = set(load_file(tmp_path / "store" / "dense.safetensors"))
    assert "model.layers.0.self_attn.q_proj.weight_int4-g32-sym" in names
    assert "model.layers.1.self_attn.q_proj.weight" in names
    wanted = logits(realigned(stock(plain, torch.bfloat16)), INPUTS)
    assert torch.equal(logits(open_model(tmp_path / "store"), INPUTS), wanted)


def test_divisors_of_all_scales_are_each_matrix_s_own(checkpoints, stores, tmp_path):
    """Gate and up lie in one parameter of a record, and have different divisors."""
    checkpoint, plain = checkpoints("nvfp4")
    stems = [f"model.layers.1.mlp.experts.5.{part}_proj.weight" for part in ("gate", "up")]
    held = load_file(checkpoint / "model.safetensors")
    assert not torch.equal(*(held[f"{stem}_global_scale"] for stem in stems))
    store = Store.open(stores("nvfp4"))
    key = BankKey("text", 1, "mlp").expert(5)
    layout = store.layout(key)
    record = memoryview(bytearray(layout.nbytes))
    store.read_into(key, record)
    parts = [torch.frombuffer(record[f.offset : f.offset + f.nbytes], dtype=torch.uint8).view(f.shape)
             for f in layout.fields[:2]]  # fmt: skip
    wanted = torch.cat([load_file(plain / "model.safetensors")[stem] for stem in stems])
    assert torch.equal(SCHEMES["nvfp4"].dequantise(tuple(parts), 256, torch.bfloat16), wanted)

    def doubled(tensors):
        return tensors | {f"{stems[1]}_global_scale": tensors[f"{stems[1]}_global_scale"] * 2}

    report = verify(stores("nvfp4"), against=written(checkpoint, tmp_path / "other", doubled))
    assert [problem.place for problem in report.problems] == ["expert 00005"]

    def two(tensors):
        return tensors | {f"{stems[1]}_global_scale": torch.ones(2)}

    with pytest.raises(UnsupportedError, match=r"experts\.5\.up_proj.*are not those of 4 bits in groups of 16"):
        Checkpoint.open(written(checkpoint, tmp_path / "two", two))


def test_a_store_of_nvfp4_is_exported_dequantised_and_quantised_again(checkpoints, stores, tmp_path):
    from coterie.exporting import export
    from coterie.extraction import quantize

    _, plain = checkpoints("nvfp4")
    export(stores("nvfp4"), tmp_path / "exported", dequantise=True)
    wanted, got = (load_file(path / "model.safetensors") for path in (plain, tmp_path / "exported"))
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    with pytest.raises(UsageError, match="Nothing is quantised to 'nvfp4'"):
        extract(plain, tmp_path / "store", scheme="nvfp4")
    with pytest.warns(UserWarning, match="again"):
        quantize(stores("nvfp4"), tmp_path / "fewer", scheme="int3")
    assert {Store.open(tmp_path / "fewer").scheme(key) for key in Store.open(tmp_path / "fewer").keys()} == {"int3"}


def test_inputs_in_another_order_are_refused(checkpoints, tmp_path):
    def shuffle(tensors):
        return {name: tensor.flip(0) if name.endswith("g_idx") else tensor for name, tensor in tensors.items()}

    checkpoint, _ = checkpoints("gptq")
    with pytest.raises(UnsupportedError, match="order of activations"):
        Checkpoint.open(written(checkpoint, tmp_path / "said", desc_act=True))
    with pytest.raises(CheckpointFileError, match="are not neighbours"):
        extract(written(checkpoint, tmp_path / "unsaid", shuffle), tmp_path / "store")


def test_experts_that_are_packed_differently_are_refused(checkpoints, tmp_path):
    def other_scales(tensors):
        name = "model.layers.0.mlp.experts.2.gate_proj.weight_scale"
        return tensors | {name: tensors[name].float()}

    checkpoint, _ = checkpoints("w4a16")
    with pytest.raises(UnsupportedError, match=r"stored as int4-g32-sym, and .*experts\.2.* as int4-g32-sym-f32"):
        Checkpoint.open(written(checkpoint, tmp_path / "mixed", other_scales))

    def other_shape(tensors):
        stem = "model.layers.0.mlp.experts.2.down_proj.weight_"
        return tensors | {stem + end: tensors[stem + end][:128] for end in ("packed", "scale")}

    with pytest.raises(CheckpointFileError, match="do not fit"):
        Checkpoint.open(written(checkpoint, tmp_path / "short", other_shape))


def test_a_group_that_no_scheme_has_is_refused(tmp_path):
    checkpoint, _ = packed(Packed(kind="gptq", group=16), tmp_path / "made")
    with pytest.raises(UnsupportedError, match=r"groups of 16 .*no scheme takes that as it is.*groups of 32"):
        Checkpoint.open(checkpoint)


def test_a_model_that_is_pruned_keeps_its_codes(checkpoints, tmp_path):
    from coterie.extraction import prune

    checkpoint, _ = checkpoints("awq")
    prune(checkpoint, tmp_path / "store", keep="50%", by="random")
    store = Store.open(tmp_path / "store")
    assert {store.scheme(key) for key in store.keys()} == {"int4-g128-zp-f16"}


def test_float_weights_by_channel(tmp_path, open_model):
    """compressed-tensors' float-quantized: e4m3 with a scale for each row, used as they lie."""
    _, plain = packed(Packed(kind="compressed-tensors"), tmp_path / "made")
    tensors, stored = load_file(plain / "model.safetensors"), {}
    for name, tensor in list(tensors.items()):
        stored[name] = tensor
        if tensor.dim() == 2 and "proj" in name:
            scale = (tensor.float().abs().amax(1, keepdim=True) / 448).bfloat16()
            stored[name] = (tensor.float() / scale.float()).to(torch.float8_e4m3fn)
            stored[f"{name}_scale"] = scale
            tensors[name] = (stored[name].float() * scale.float()).bfloat16()
    groups = {"group_0": {"weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}}}
    checkpoint = shutil.copytree(plain, tmp_path / "fp8")
    raw = json.loads((plain / "config.json").read_text())
    config = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}
    raw["quantization_config"] = config
    (checkpoint / "config.json").write_text(json.dumps(raw))
    save_file(stored, checkpoint / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    extract(checkpoint, tmp_path / "store")
    wanted = logits(realigned(stock(plain, torch.bfloat16)), INPUTS)
    assert torch.equal(logits(open_model(checkpoint), INPUTS), wanted)
    assert torch.equal(logits(open_model(tmp_path / "store"), INPUTS), wanted)
    assert inspect(checkpoint).banks[0].encodings == ("fp8",)
    assert verify(tmp_path / "store", against=checkpoint).problems == ()


def test_packed_routers_are_read_dequantised(checkpoints, stores):
    from coterie.analysis.matrices import Routers

    checkpoint, plain = checkpoints("mlx")
    wanted = load_file(plain / "model.safetensors")["model.layers.1.mlp.gate.weight"]
    for model in (checkpoint, stores("mlx")):
        matrix = Routers.open(model).read(BankKey("text", 1, "mlp"))
        assert torch.equal(torch.from_numpy(matrix.rows), wanted.double())
    # The same model, whatever it was packed as: profiles are shared.
    assert inspect(checkpoint).model.identity == inspect(plain).model.identity == inspect(stores("mlx")).model.identity

"""What configurations say about packed weights: read, or refused with the reason; and the names of their tensors."""

from pathlib import Path

import pytest

from coterie.errors import TensorMissingError, UnsupportedError
from coterie.hf.quantisation import read_quantisation, without_quantisation
from coterie.hf.quantised import fold_packed
from coterie.spec.packing import Packing

PATH = Path("config.json")
CT_WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def ct(weights=None, **others):
    groups = {"group_0": {"targets": ["Linear"], "weights": CT_WEIGHTS | (weights or {})}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups} | others


def nvfp4(weights=None, **others):
    stated = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16} | (weights or {})
    return ct(stated, format="nvfp4-pack-quantized", **others)


def gptq(**others):
    return {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True} | others


def read(found, key="quantization_config", model_type="qwen3_moe"):
    return read_quantisation({key: found, "model_type": model_type}, PATH)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (ct(), [Packing(kind="compressed-tensors", bits=4, group=32)]),
        (
            ct({"strategy": "channel", "group_size": None, "symmetric": False, "num_bits": 8, "actorder": "static"}),
            [Packing(kind="compressed-tensors", bits=8, group=None, symmetric=False)],
        ),
        (nvfp4(), [Packing(kind="nvfp4", bits=4, group=16)]),
        (gptq(), [Packing(kind="gptq", bits=4, group=128, points_less_one=True)]),
        # Per channel, the order of inputs changes nothing.
        (gptq(group_size=-1, desc_act=True), [Packing(kind="gptq", bits=4, group=None, points_less_one=True)]),
        (
            gptq(checkpoint_format="gptq_v2", sym=False, dynamic={"+:.*down.*": {"bits": 8}, "-:.*attn.*": {}}),
            [
                Packing(kind="gptq", bits=4, group=128, symmetric=False),
                Packing(kind="gptq", bits=8, group=128, symmetric=False),
            ],
        ),
        (
            {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"},
            [Packing(kind="gptq", bits=4, group=128, points_less_one=True)],
        ),
        (
            {"quant_method": "auto-round", "bits": 2, "group_size": 32, "sym": True, "packing_format": "auto_round",
             "extra_config": {"model.layers.0.x": {"bits": 8}, "lm_head": {"bits": 16}}},
            [Packing(kind="gptq", bits=2, group=32), Packing(kind="gptq", bits=8, group=32)],
        ),
        (
            {"quant_method": "auto-round", "bits": 4, "group_size": 128, "packing_format": "auto_round:auto_awq"},
            [Packing(kind="awq", bits=4, group=128, symmetric=False)],
        ),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "GEMM", "zero_point": True},
            [Packing(kind="awq", bits=4, group=128, symmetric=False)],
        ),
        (
            {"group_size": 64, "bits": 4, "model.layers.0.mlp.gate": {"group_size": 64, "bits": 8}, "x": False},
            [
                Packing(kind="mlx", bits=4, group=64, symmetric=False),
                Packing(kind="mlx", bits=8, group=64, symmetric=False),
            ],
        ),
    ],
)  # fmt: skip
def test_what_is_read(found, wanted):
    quantisation = read(found)
    assert quantisation.packings.candidates == tuple(wanted)
    assert quantisation.method == wanted[0].kind


def test_mlx_has_a_key_of_its_own():
    quantisation = read({"group_size": 64, "bits": 4, "a.b": {"bits": 8}}, key="quantization")
    packings = quantisation.packings
    assert packings.of("a.b", {"codes": (8, 32), "scales": (8, 2), "biases": (8, 2)}).bits == 8
    assert packings.of("a.c", {"codes": (8, 16), "scales": (8, 2), "biases": (8, 2)}).bits == 4
    assert packings.of("a.b", {"codes": (8, 16), "scales": (8, 2), "biases": (8, 2)}) is None


def test_float_weights_by_channel_are_used_as_they_lie():
    found = ct({"num_bits": 8, "type": "float", "strategy": "channel"}, format="float-quantized")
    quantisation = read(found)
    assert (quantisation.method, quantisation.block, quantisation.packings) == ("fp8", None, None)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (ct({"actorder": "group"}), "order of activations"),
        (ct({"type": "float"}), "type 'float'"),
        (ct({"strategy": "block"}), "strategy 'block'"),
        (ct({"num_bits": 16}), "num_bits 16"),
        (ct({"group_size": 0}), "group_size 0"),
        (ct(format="marlin-24"), "format 'marlin-24'"),
        (ct(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (ct(transform_config={"R1": {}}), "transform_config"),
        (ct(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {}}, "format": "pack-quantized"}, "nothing"),
        (ct({"num_bits": 4, "type": "float"}, format="float-quantized"), "not of 8 bits"),
        (nvfp4({"group_size": 32}), "groups of 32 in nvfp4-pack-quantized"),
        (nvfp4({"symmetric": False}), "symmetric floating numbers"),
        (nvfp4({"type": "int"}), "type 'int'"),
        (gptq(desc_act=True), "desc_act.*another order"),
        (gptq(bits=3), "only 2, 4 and 8 bits"),
        (gptq(bits="4"), "bits '4'"),
        (gptq(checkpoint_format="marlin"), "format 'marlin'"),
        (gptq(pack_dtype="int64"), "int64"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}, "format 'gemv'"),
        ({"quant_method": "awq", "bits": 8, "group_size": 128}, "bits 8"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:x"}, "packing"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "mx_fp"}, "something else"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 32, "act_bits": 8}, "weights alone"),
        ({"quant_method": "auto-round", "bits": 3, "group_size": 32}, "bits; 2, 4 and 8"),
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "mode 'mxfp4'"),
        ({"bits": 4, "group_size": 64} | {f"m{n}": {} for n in range(4097)}, "4099 entries"),
    ],
)
def test_what_is_refused_says_why(found, why):
    with pytest.raises(UnsupportedError, match=why) as caught:
        read(found)
    assert "original" in caught.value.advice


def test_models_that_mlx_rearranges_are_refused():
    with pytest.raises(UnsupportedError, match="'qwen3_next', whose weights MLX may have rearranged"):
        read({"group_size": 64, "bits": 4}, model_type="qwen3_next")


def test_the_configuration_of_a_store_says_nothing_of_it():
    raw = {"a": 1, "quantization_config": {"x": 1}, "quantization": {"y": 1}, "compression_config": {}}
    assert without_quantisation(raw) == {"a": 1}


def test_names_are_those_of_an_ordinary_checkpoint():
    shapes = {
        "a.qweight": (16, 64), "a.qzeros": (1, 8), "a.scales": (1, 64), "a.g_idx": (128,),
        "a.bias": (64,), "norm.weight": (64,),
    }  # fmt: skip
    dtypes = {"a.qweight": "I32", "a.qzeros": "I32", "a.scales": "F16", "a.g_idx": "I32", "a.bias": "F16"}
    dtypes["norm.weight"] = "F16"
    packings = read(gptq()).packings
    folded = fold_packed(packings, dtypes, shapes)
    assert sorted(folded.names) == ["a.bias", "a.weight", "norm.weight"]
    assert set(folded.stored("a.weight")) == {"a.qweight", "a.qzeros", "a.scales", "a.g_idx"}
    assert folded.stored("a.bias") == ("a.bias",)
    with pytest.raises(TensorMissingError, match=r"lacks 'a\.qzeros'"):
        fold_packed(packings, {name: dtype for name, dtype in dtypes.items() if name != "a.qzeros"}, shapes)
    with pytest.raises(UnsupportedError, match=r"a\.scales' is in I32"):
        fold_packed(packings, dtypes | {"a.scales": "I32"}, shapes)
    with pytest.raises(UnsupportedError, match="4 bits in groups of 128, which config"):
        fold_packed(packings, dtypes, shapes | {"a.scales": (2, 64)})


def test_what_is_of_activations_is_left_out():
    shapes = {"a.weight_packed": (64, 16), "a.weight_scale": (64, 4), "a.weight_shape": (2,)}
    dtypes = {"a.weight_packed": "I32", "a.weight_scale": "BF16", "a.weight_shape": "I64"}
    folded = fold_packed(read(ct()).packings, dtypes, shapes)
    assert folded.names == ["a.weight"]
    assert folded.unused == ["a.weight_shape"]


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [("l.mlp", "l.mlp.experts.1.up_proj.weight"), ("l.block_sparse_moe", "l.block_sparse_moe.experts.1.w3.weight")],
)
def test_experts_in_one_tensor_are_told_apart(layer, wanted):
    stem = f"{layer}.switch_mlp.up_proj"
    shapes = {f"{stem}.weight": (2, 8, 16), f"{stem}.scales": (2, 8, 2), f"{stem}.biases": (2, 8, 2), "n.weight": (8,)}
    dtypes = {f"{stem}.weight": "U32", f"{stem}.scales": "BF16", f"{stem}.biases": "BF16", "n.weight": "BF16"}
    packings = read({"group_size": 64, "bits": 4}).packings
    folded = fold_packed(packings, dtypes, shapes)
    assert len(folded.packed) == 2
    assert folded.packed[wanted].index == 1
    odd = {name.replace("switch_mlp", "others"): shape for name, shape in shapes.items()}
    with pytest.raises(UnsupportedError, match="not known"):
        fold_packed(packings, {name.replace("switch_mlp", "others"): dtype for name, dtype in dtypes.items()}, odd)

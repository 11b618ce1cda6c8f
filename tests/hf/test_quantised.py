"""The arithmetic and the names of quantised checkpoints, held against the installed transformers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import FineGrainedFP8Config
from transformers.integrations import finegrained_fp8, mxfp4
from transformers.quantizers import quantizer_finegrained_fp8, quantizer_mxfp4

from coterie.errors import TensorMissingError, UnsupportedError
from coterie.hf.quantisation import Quantisation
from coterie.hf.quantised import fold_names
from coterie.quant import dequantise_fp8, dequantise_mxfp4

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
FP8 = Quantisation(method="fp8", block=(128, 128))

needs_grid = pytest.mark.skipif(
    not hasattr(finegrained_fp8.Fp8Dequantize, "_dequantize_one"),
    reason="this transformers takes blocks from the configuration and rounds elsewhere",
)


def theirs(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What Fp8Dequantize makes of a weight that is to become a parameter of ``dtype``."""
    model = torch.nn.Module()
    model.linear = torch.nn.Linear(1, 1, dtype=dtype)
    operation = finegrained_fp8.Fp8Dequantize(SimpleNamespace(quantization_config=FineGrainedFP8Config()))
    pair = {"weight": weight, "weight_scale_inv": scales}
    return operation.convert(pair, full_layer_name="linear.weight", model=model)["linear.weight"]


def codes(rows: int, columns: int, *, ordinary: bool = True) -> torch.Tensor:
    """FP8 weights of every bit pattern; with ``ordinary``, without the two that are NaN."""
    generator = torch.Generator().manual_seed(rows * columns)
    values = torch.arange(256, dtype=torch.uint8)
    values = values[(values & 0x7F) != 0x7F] if ordinary else values
    repeated = values.repeat(-(-rows * columns // len(values)))[: rows * columns]
    return repeated[torch.randperm(rows * columns, generator=generator)].view(rows, columns).view(torch.float8_e4m3fn)


def scales_of(kind: str, n: int, k: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n * k)
    values = torch.rand(n, k, generator=generator) * 3
    if kind == "bytes":
        return torch.randint(100, 140, (n, k), generator=generator).to(torch.uint8)
    if kind == "tiny":
        return values * 1e-40
    if kind == "huge":
        return values * 1e37
    return values.to(getattr(torch, kind))


@needs_grid
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "float8_e8m0fnu", "bytes", "tiny", "huge"])
@pytest.mark.parametrize(("rows", "columns", "n", "k"), [(256, 384, 2, 3), (192, 64, 2, 1), (96, 250, 1, 2)])
def test_fp8_has_the_bits_of_transformers(rows, columns, n, k, kind, dtype):
    weight, scales = codes(rows, columns), scales_of(kind, n, k)
    ours = dequantise_fp8(weight, scales, dtype)
    assert ours.dtype == dtype
    assert ours.is_contiguous()
    assert torch.equal(ours, theirs(weight, scales, dtype))


@needs_grid
@pytest.mark.parametrize("case", ["nan", "odd", "strided", "scalar", "nan in scales"])
def test_fp8_that_is_not_ordinary(case):
    weight, scales = codes(128, 128, ordinary=case != "nan"), torch.rand(1, 1)
    if case == "odd":
        weight = codes(3, 5)
    if case == "strided":
        weight = codes(128, 256)[:, ::2]
    if case == "scalar":
        scales = torch.tensor(0.3)
    if case == "nan in scales":
        scales = torch.tensor([[float("nan")]])
    wanted = theirs(weight, scales, torch.float32)
    torch.testing.assert_close(dequantise_fp8(weight, scales, torch.float32), wanted, rtol=0, atol=0, equal_nan=True)
    assert wanted.isnan().any() == case.startswith("nan")


def test_fp8_with_smaller_blocks_at_the_edges():
    weight, scales = codes(200, 300), scales_of("float32", 2, 3)
    spread = scales.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    with pytest.raises(ValueError, match="do not divide"):
        dequantise_fp8(codes(201, 300), scales, torch.bfloat16)
    # 200 rows divide by two, so only columns that do not divide by three make blocks matter: 299.
    ours = dequantise_fp8(weight[:, :299].contiguous(), scales, torch.bfloat16, (128, 128))
    assert torch.equal(ours, (weight.float() * spread).to(torch.bfloat16)[:, :299])


@pytest.mark.parametrize("largest", [254, 255])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mxfp4_has_the_bits_of_transformers(dtype, largest):
    every = torch.arange(256, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    blocks = every[torch.randint(0, 256, (1, 256, 4, 16), generator=generator)]
    scales = every[:, None].repeat(1, 4)[None].clamp(max=largest)
    wanted = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=dtype)[0]
    ours = dequantise_mxfp4(blocks[0], scales[0], dtype)
    assert ours.shape == wanted.shape == (128, 256)
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, wanted, rtol=0, atol=0, equal_nan=True)


def test_transformers_still_has_the_names_that_we_fold():
    """If this fails, transformers calls serialised tensors otherwise: compare hf/quantised/names.py."""
    fp8 = quantizer_finegrained_fp8.FineGrainedFP8HfQuantizer
    serialised = getattr(fp8, "serialized_names", None)
    if serialised is not None:
        assert serialised == {"weight": ["weight", "weight_scale_inv", "activation_scale"]}
        assert quantizer_mxfp4.Mxfp4HfQuantizer.serialized_names == {
            name: [f"{name}_blocks", f"{name}_scales"] for name in ("gate_up_proj", "down_proj")
        }
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert list(mxfp4.FP4_VALUES) == [*positive, *(-value for value in positive)]


def test_names_are_folded_to_those_of_an_ordinary_checkpoint():
    folded = fold_names(
        FP8,
        {
            "a.weight": "F8_E4M3",
            "a.weight_scale_inv": "F32",
            "a.activation_scale": "F32",
            "b.weight": "F8_E4M3",
            "b.scale": "F8_E8M0",
            "c.weight": "BF16",
            "c.scale": "F32",
            "d.gate_up_proj": "F8_E4M3",
            "d.gate_up_proj_scale_inv": "F32",
        },
    )
    assert sorted(folded.names) == ["a.weight", "b.weight", "c.scale", "c.weight", "d.gate_up_proj"]
    assert folded.parts == {
        "a.weight": ("a.weight", "a.weight_scale_inv"),
        "b.weight": ("b.weight", "b.scale"),
        "d.gate_up_proj": ("d.gate_up_proj", "d.gate_up_proj_scale_inv"),
    }
    assert folded.unused == ["a.activation_scale"]
    names = {"x.down_proj_blocks": "U8", "x.down_proj_scales": "U8", "x.down_proj_bias": "BF16", "y_blocks": "U8"}
    folded = fold_names(Quantisation(method="mxfp4"), names)
    assert sorted(folded.names) == ["x.down_proj", "x.down_proj_bias", "y_blocks"]
    assert fold_names(None, names).names == list(names)


def test_weights_without_scales_and_of_other_dtypes_are_refused():
    with pytest.raises(TensorMissingError, match=r"a\.weight_scale_inv"):
        fold_names(FP8, {"a.weight": "F8_E4M3"})
    for dtype in ("F8_E5M2", "I8"):
        with pytest.raises(UnsupportedError, match=f"quantised to {dtype}"):
            fold_names(FP8, {"a.weight": dtype, "a.weight_scale_inv": "F32"})

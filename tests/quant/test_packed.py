"""Packed weights: unpacked as the formats' own libraries do it, and the same weights in the schemes that take them."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from coterie.errors import UsageError
from coterie.quant.packed import some_rows, transcode, unpack
from coterie.quant.registry import SCHEMES
from coterie.spec.packing import Packing
from zoo.packed import Packed, quantise, tensors_of

RECORDED = Path(__file__).parents[1] / "data" / "packed.safetensors"
"""Weights that the libraries packed, and what they make of them; see tests/data/README.md."""
_ROLES = ("codes", "scales", "points", "biases", "divisor")
_SAFETENSORS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}


def recorded() -> list[tuple[str, Packing, dict[str, torch.Tensor], torch.Tensor]]:
    found = []
    with safe_open(RECORDED, "pt") as file:
        for case in sorted({name.partition("/")[0] for name in file.keys()}):
            kind, bits, group, zeros, _ = case.split("_")
            packing = Packing(
                kind=kind.replace("gptq2", "gptq"),
                bits=int(bits),
                group=int(group) or None,
                symmetric=zeros == "sym",
                points_less_one=kind == "gptq",
            )
            tensors = {role: file.get_tensor(f"{case}/{role}") for role in _ROLES if f"{case}/{role}" in file.keys()}
            found.append((case, packing, tensors, file.get_tensor(f"{case}/weights")))
    return found


CASES = recorded()


@pytest.mark.parametrize(
    ("packing", "tensors", "weights"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_weights_are_those_of_the_formats_own_library(packing, tensors, weights):
    unpacked = unpack(packing, tensors)
    ours = unpacked.weights(weights.dtype)
    if packing.kind == "mlx":
        # mx.dequantize rounds the product, and then the sum.
        grouped = unpacked.codes_NK.view(len(ours), unpacked.scales_NG.shape[1], -1)
        theirs = (grouped * unpacked.scales_NG[..., None].float()).to(ours.dtype).float()
        twice = (theirs + unpacked.biases_NG[..., None].float()).to(ours.dtype).view_as(ours)
        assert torch.equal(twice, weights)
        largest = unpacked.biases_NG.abs().amax().float() * torch.finfo(ours.dtype).eps
        assert (ours.float() - weights.float()).abs().amax() <= largest
    else:
        assert torch.equal(ours, weights)


@pytest.mark.parametrize(
    ("packing", "tensors", "weights"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_scheme_takes_them_bit_for_bit(packing, tensors, weights):
    assert packing.fits({role: tuple(tensor.shape) for role, tensor in tensors.items()})
    unpacked = unpack(packing, tensors)
    scheme = packing.scheme(_SAFETENSORS[tensors["scales"].dtype])
    parts, rounded = transcode(unpacked, scheme)
    rows, columns = weights.shape
    assert SCHEMES[scheme].form.fits(*(_facts(part) for part in parts), (rows, columns))
    assert rounded.zeros == 0
    assert rounded.of == (rows * unpacked.scales_NG.shape[1] if "zero" in SCHEMES[scheme].form.numbers else 0)
    for dtype in (weights.dtype, torch.float32):
        assert torch.equal(SCHEMES[scheme].dequantise(parts, columns, dtype), unpacked.weights(dtype))


def _facts(part: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    names = _SAFETENSORS | {torch.uint8: "U8", torch.int8: "I8"}
    return names[part.dtype], tuple(part.shape)


@pytest.mark.parametrize("kind", ["compressed-tensors", "nvfp4", "gptq", "gptq_v2", "awq", "mlx"])
def test_a_weight_is_unpacked_some_rows_at_a_time(kind):
    how = Packed(kind=kind, symmetric=kind != "awq", group=16 if kind == "nvfp4" else 32)
    packing = _packing(how)
    generator = torch.Generator().manual_seed(1)
    made = quantise(torch.randn(80, 64, generator=generator), how)
    tensors = tensors_of(made, how)
    whole = unpack(packing, tensors).weights(torch.float32)
    assert torch.equal(whole, made.weights)
    bands = [slice(0, 32), slice(32, 64), slice(64, 80)]
    parts = [unpack(packing, some_rows(packing, tensors, rows)).weights(torch.float32) for rows in bands]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_of_any_bits_are_read_from_words(bits):
    how = Packed(kind="mlx", bits=bits, group=64)
    made = quantise(torch.randn(4, 192, generator=torch.Generator().manual_seed(bits)), how)
    unpacked = unpack(_packing(how), tensors_of(made, how))
    assert torch.equal(unpacked.codes_NK.long(), made.codes)
    scheme = _packing(how).scheme("BF16")
    parts, rounded = transcode(unpacked, scheme)
    assert rounded.zeros == 0
    assert torch.equal(SCHEMES[scheme].dequantise(parts, 192, torch.float32), made.weights)


def test_what_is_rounded_is_counted_with_its_size():
    how = Packed(kind="mlx", bits=4, group=32)
    made = quantise(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)), how)
    tensors = tensors_of(made, how)
    # All of a group far from 0: a bias that is many steps has no bits left for them.
    tensors["biases"] = torch.full_like(tensors["biases"], 100.0)
    tensors["scales"] = torch.full_like(tensors["scales"], 0.01)
    _, rounded = transcode(unpack(_packing(how), tensors), "int4-g32")
    assert (rounded.zeros, rounded.of) == (4, 4)
    # 100.08 lies between 100 and 100.5.
    assert 7 < rounded.steps <= 8.01
    again = rounded + rounded
    assert (again.zeros, again.of, again.steps) == (8, 8, rounded.steps)


def test_a_group_in_several_of_the_scheme_has_the_scale_again():
    for group, wanted, stored in ((None, "int4-g128-sym", 2), (256, "int4-g128-sym", 2), (96, "int4-g32-sym", 6)):
        how = Packed(kind="compressed-tensors", group=group)
        columns = 192 if group == 96 else 256
        made = quantise(torch.randn(4, columns, generator=torch.Generator().manual_seed(3)), how)
        packing = _packing(how)
        assert packing.scheme("BF16") == wanted
        parts, _ = transcode(unpack(packing, tensors_of(made, how)), wanted)
        assert parts[1].shape == (4, stored)
        assert torch.equal(SCHEMES[wanted].dequantise(parts, columns, torch.float32), made.weights)


def test_what_no_scheme_takes_is_refused():
    with pytest.raises(UsageError, match="groups of 16"):
        Packing(kind="gptq", bits=4, group=16).scheme("F16")
    with pytest.raises(UsageError, match="no scheme of 3 bits"):
        Packing(kind="mlx", bits=3, group=64).scheme("F16")
    # Of eight bits, zero points become zeros in float32, in which they are exact.
    assert Packing(kind="gptq", bits=8, group=128, symmetric=False).scheme("F16") == "int8-g128-zero-f32"


def test_inputs_in_another_order_are_refused():
    how = Packed(kind="gptq", group=32)
    made = quantise(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), how)
    tensors = tensors_of(made, how)
    assert "order" in tensors
    tensors["order"] = tensors["order"].flip(0)
    with pytest.raises(ValueError, match="not neighbours"):
        unpack(_packing(how), tensors)


def test_zero_points_that_config_denies_are_refused():
    how = Packed(kind="gptq", group=32, symmetric=False)
    made = quantise(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), how)
    with pytest.raises(ValueError, match="not all in the middle"):
        unpack(_packing(Packed(kind="gptq", group=32)), tensors_of(made, how))
    how = Packed(kind="compressed-tensors", group=32, symmetric=False)
    with pytest.raises(ValueError, match="zero points are there"):
        unpack(_packing(Packed(kind="compressed-tensors", group=32)), tensors_of(made, how))


def test_shapes_tell_the_packing():
    packing = Packing(kind="compressed-tensors", bits=4, group=32)
    assert packing.fits({"codes": (8, 16), "scales": (8, 4)})
    assert not packing.fits({"codes": (8, 16), "scales": (8, 2)})
    assert not packing.fits({"codes": (8, 16), "scales": (4, 4)})
    assert not packing.fits({"codes": (8, 16, 2), "scales": (8, 4)})
    assert not packing.fits({"codes": (8, 15), "scales": (8, 4)})
    channel = Packing(kind="compressed-tensors", bits=8, group=None)
    assert channel.fits({"codes": (8, 16), "scales": (8, 1)})
    assert channel.fits({"codes": (8, 16), "scales": (8,)})
    gptq = Packing(kind="gptq", bits=4, group=32, symmetric=False)
    assert gptq.fits({"codes": (16, 8), "scales": (4, 8), "points": (4, 1), "order": (128,)})
    assert not gptq.fits({"codes": (16, 8), "scales": (4, 8), "points": (4, 2), "order": (128,)})
    assert not gptq.fits({"codes": (16, 8), "scales": (4, 8), "points": (4, 1), "order": (64,)})


def _packing(how: Packed) -> Packing:
    return Packing(
        kind={"gptq_v2": "gptq"}.get(how.kind, how.kind),
        bits=how.bits,
        group=how.group,
        symmetric=how.symmetric and how.kind not in ("mlx", "awq"),
        points_less_one=how.kind == "gptq",
    )

"""Packed weights of compressed-tensors, NVFP4, GPTQ, AWQ and MLX as codes and what their groups have."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from coterie.quant.packed.bits import unpack_words
from coterie.quant.packed.float_blocks import FloatBlocks
from coterie.quant.packed.lattice import Lattice
from coterie.spec.packing import Packing, PackingKind

Tensors = Mapping[str, torch.Tensor]
"""The tensors of one weight by role, see :class:`coterie.spec.packing.Packing`."""

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where a word of AWQ has each of its eight columns (``AWQ_REVERSE_ORDER`` of AutoAWQ)."""


def unpack(packing: Packing, tensors: Tensors) -> Lattice | FloatBlocks:
    """Unpacks a weight.

    Args:
        packing: How it is packed.
        tensors: Its tensors, in the shapes that the packing says.

    Raises:
        ValueError: If they are of a kind that this packing does not have: inputs in another order, or zero points where
            there are to be none.
    """
    if packing.kind == "nvfp4":
        return FloatBlocks(codes=tensors["codes"], scales_NG=tensors["scales"], divisor=tensors["divisor"])
    _check_order(packing, tensors)
    return _BY_KIND[packing.kind](packing, tensors)


def some_rows(packing: Packing, tensors: Tensors, rows: slice) -> dict[str, torch.Tensor]:
    """The tensors of some rows of a weight.

    Args:
        packing: How it is packed.
        tensors: Its tensors.
        rows: Which rows; beginning and end are multiples of 32, or the end of the weight.
    """
    bits = packing.bits
    words = slice(rows.start * bits // 32, -(-rows.stop * bits // 32))
    found = dict(tensors)
    if packing.kind in ("compressed-tensors", "nvfp4", "mlx"):
        found |= {role: tensors[role][rows] for role in ("codes", "scales", "biases") if role in tensors}
        found |= {role: tensors[role][words] for role in ("points",) if role in tensors}
        return found
    found["codes"] = tensors["codes"][:, rows if packing.kind == "gptq" else words]
    found["scales"], found["points"] = tensors["scales"][:, rows], tensors["points"][:, words]
    return found


def _check_order(packing: Packing, tensors: Tensors) -> None:
    order = tensors.get("order")
    if order is None:
        return
    group = packing.group or len(order)
    if not torch.equal(order.long(), torch.arange(len(order)) // group):
        raise ValueError(
            "its groups are of inputs that are not neighbours (activation order: g_idx is not 0, 0, … 1, 1, …), and an "
            "expert's inputs cannot be put into another order for each of its matrices"
        )


def _compressed_tensors(packing: Packing, tensors: Tensors) -> Lattice:
    """``compressed_tensors.compressors.pack_quantized``: words along a row; points packed along the rows."""
    codes_NK = unpack_words(tensors["codes"], packing.bits)
    scales_NG = tensors["scales"].reshape(len(codes_NK), -1)
    points = tensors.get("points")
    if (points is None) != packing.symmetric:
        raise ValueError("zero points are there where config.json says that there are none, or the other way round")
    # Both codes and points are stored plus half their range, so their difference is as it is.
    points_NG = None if points is None else _in_order(unpack_words(points.t(), packing.bits).t()[: len(codes_NK)])
    return Lattice(bits=packing.bits, codes_NK=codes_NK, scales_NG=scales_NG, points_NG=points_NG)


def _gptq(packing: Packing, tensors: Tensors) -> Lattice:
    """``gptqmodel``'s ``PackableQuantLinear``: words along the inputs; points along the outputs."""
    codes_NK = unpack_words(tensors["codes"].t(), packing.bits)
    words = tensors["points"]
    if packing.points_less_one:
        # One was taken from each point of the packed words, borrowing from the next one; so it is given back.
        ones = sum(1 << shift for shift in range(0, 32, packing.bits))
        words = words + (ones - (ones >> 31 << 32))
    points_NG = unpack_words(words, packing.bits).t()[: len(codes_NK)]
    return _with_points(packing, codes_NK, tensors["scales"].t(), points_NG)


def _awq(packing: Packing, tensors: Tensors) -> Lattice:
    """``awq.utils.packing_utils.dequantize_gemm``: words along the outputs, in an order of their own."""
    codes_NK = _in_awq_order(unpack_words(tensors["codes"], packing.bits)).t()
    points_NG = _in_awq_order(unpack_words(tensors["points"], packing.bits)).t()
    return _with_points(packing, codes_NK, tensors["scales"].t(), points_NG)


def _in_awq_order(codes: torch.Tensor) -> torch.Tensor:
    grouped: torch.Tensor = codes.view(len(codes), -1, len(_AWQ_ORDER))[:, :, torch.tensor(_AWQ_ORDER)]
    return grouped.flatten(1)


def _with_points(packing: Packing, codes_NK: torch.Tensor, scales_NG: torch.Tensor, points_NG: torch.Tensor) -> Lattice:
    if packing.symmetric:
        if not bool((points_NG == 1 << (packing.bits - 1)).all()):
            raise ValueError("config.json says that it is symmetric, and its zero points are not all in the middle")
        return Lattice(bits=packing.bits, codes_NK=_in_order(codes_NK), scales_NG=_in_order(scales_NG))
    return Lattice(
        bits=packing.bits,
        codes_NK=_in_order(codes_NK),
        scales_NG=_in_order(scales_NG),
        points_NG=_in_order(points_NG),
    )


def _in_order(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, row by row: a single column of a transposed tensor passes for contiguous, with a stride of its own."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _mlx(packing: Packing, tensors: Tensors) -> Lattice:
    """``mx.quantize`` in the mode ``affine``: words along a row; a bias for each group."""
    return Lattice(
        bits=packing.bits,
        codes_NK=unpack_words(tensors["codes"], packing.bits),
        scales_NG=tensors["scales"],
        biases_NG=tensors["biases"],
    )


_BY_KIND: dict[PackingKind, Callable[[Packing, Tensors], Lattice]] = {
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "awq": _awq,
    "mlx": _mlx,
}

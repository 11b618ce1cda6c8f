"""What ``config.json`` says about weights that are packed into words: compressed-tensors, GPTQ, AutoRound, AWQ, MLX."""

from coterie.hf.packings.compressed_tensors import (
    FLOAT,
    NVFP4,
    PACKED,
    compressed_tensors,
    formats,
    nvfp4,
    weights_of,
)
from coterie.hf.packings.gptq import auto_round, awq, gptq
from coterie.hf.packings.mlx import check_mlx, mlx
from coterie.hf.packings.packings import Packings, Refused

__all__ = [
    "FLOAT",
    "NVFP4",
    "PACKED",
    "Packings",
    "Refused",
    "auto_round",
    "awq",
    "check_mlx",
    "compressed_tensors",
    "formats",
    "gptq",
    "mlx",
    "nvfp4",
    "weights_of",
]

"""The arithmetic: the common SwiGLU experts, bit-identical to transformers' eager forward, and linear layers.

Shape suffixes: T tokens, D model dimension, F expert dimension, E experts, K experts per token, N rows of one expert.
"""

from coterie.kernels.grouping import Grouping, group_by_expert
from coterie.kernels.linear import quantised_linear, stock_linear
from coterie.kernels.stacked import StackedProduct, activate_rows
from coterie.kernels.swiglu import Accumulator, TokenKernel, swiglu_rows

__all__ = [
    "Accumulator",
    "Grouping",
    "StackedProduct",
    "TokenKernel",
    "activate_rows",
    "group_by_expert",
    "quantised_linear",
    "stock_linear",
    "swiglu_rows",
]

"""The arithmetic: the common SwiGLU experts, bit-identical to transformers' eager forward, and linear layers.

Shape suffixes: T tokens, D model dimension, F expert dimension, E experts, K experts per token, N rows of one expert.
"""

from coterie.kernels.dense import GroupedAttention, QuantisedLinear, StockLinear, quantised_linear, stock_linear
from coterie.kernels.grouping import Grouping, group_by_expert
from coterie.kernels.stacked import StackedProduct, activate_rows
from coterie.kernels.swiglu import Accumulator, swiglu_rows
from coterie.kernels.token_kernel import TokenKernel

__all__ = [
    "Accumulator",
    "GroupedAttention",
    "Grouping",
    "QuantisedLinear",
    "StackedProduct",
    "StockLinear",
    "TokenKernel",
    "activate_rows",
    "group_by_expert",
    "quantised_linear",
    "stock_linear",
    "swiglu_rows",
]

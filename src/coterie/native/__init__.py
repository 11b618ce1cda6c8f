"""Quantised matrices on the processor, in C: used in place, as the store has them, at the speed of memory.

The library is built when Coterie is installed and loaded by ctypes; where there is none, the reference in
``coterie.quant`` computes the same with torch. Shape suffixes: M rows, N outputs, K inputs.
"""

from coterie.native.addresses import Addresses
from coterie.native.attention import attention_served, rotate, token_attention
from coterie.native.conversion import DEQUANTISED_TO, QUANTISED_FROM, dequantise, quantise
from coterie.native.dense_decoder import DenseDecoder, DenseLayer, DenseNorm, DenseSequence
from coterie.native.experts import ACTIVATIONS, ExpertsKernel, ExpertsPass
from coterie.native.layer import LayerBlock, LayerNorm, LayerParts, LayerRouter, NativeLayer
from coterie.native.library import LEVELS, VARIABLE, Library, library, why_not
from coterie.native.matmul import PackedMatrix
from coterie.native.new_memory import touch_when_idle
from coterie.native.openmp import SETTINGS as WAITING_SETTINGS
from coterie.native.openmp import Crowd, Waiting, turns_for_long, waiting, waiting_words
from coterie.native.router import route
from coterie.native.schemes import PART_DTYPES, SCHEME_CODES, SCHEMES, knows
from coterie.native.token_experts import Places, TokenExperts
from coterie.native.token_state import (
    MOST_ROWS,
    STAGES,
    KeyValueRoom,
    LayerShape,
    Results,
    StageTimes,
    TokenState,
    TokenStates,
)
from coterie.native.workspace import Located, PassMemory

__all__ = [
    "ACTIVATIONS",
    "DEQUANTISED_TO",
    "LEVELS",
    "MOST_ROWS",
    "PART_DTYPES",
    "QUANTISED_FROM",
    "SCHEMES",
    "SCHEME_CODES",
    "STAGES",
    "VARIABLE",
    "WAITING_SETTINGS",
    "Addresses",
    "Crowd",
    "DenseDecoder",
    "DenseLayer",
    "DenseNorm",
    "DenseSequence",
    "ExpertsKernel",
    "ExpertsPass",
    "KeyValueRoom",
    "LayerBlock",
    "LayerNorm",
    "LayerParts",
    "LayerRouter",
    "LayerShape",
    "Library",
    "Located",
    "NativeLayer",
    "PackedMatrix",
    "PassMemory",
    "Places",
    "Results",
    "StageTimes",
    "TokenExperts",
    "TokenState",
    "TokenStates",
    "Waiting",
    "attention_served",
    "dequantise",
    "knows",
    "library",
    "quantise",
    "rotate",
    "route",
    "token_attention",
    "touch_when_idle",
    "turns_for_long",
    "waiting",
    "waiting_words",
    "why_not",
]

"""The library as this process has it: loaded once, at the level that machine and user allow, or not at all."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from coterie.errors import UnsupportedError, UsageError
from coterie.native import build
from coterie.native.build import LIBRARY, fingerprint
from coterie.native.openmp import runtime_symbols

_LEVELS = {
    ("x86_64", "amd64"): ("default", "avx2", "avx512bf16", "amx"),
    ("aarch64", "arm64"): ("default", "neon", "dotprod"),
}


def levels_of(machine: str) -> tuple[str, ...]:
    """Instruction-set levels of an architecture, lowest first; portable C is the first one everywhere.

    Args:
        machine: As ``platform.machine()`` names it.
    """
    return next((levels for names, levels in _LEVELS.items() if machine.lower() in names), ("default",))


LEVELS = levels_of(platform.machine())
"""Levels of this architecture: AVX2 with FMA, AVX-512 with BF16, AMX; or NEON, and that with dot products."""

_BUILT_BY = f"A C compiler builds it: {shlex.join([sys.executable, build.__file__])}"
"""What to do about a library that is not there. The sources are in every wheel."""

VARIABLE = "COTERIE_CPU_CAPABILITY"
"""Environment variable that lowers the level."""

_int, _long, _float, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
PROTOTYPES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "coterie_fingerprint": (ctypes.c_char_p, ()),
    "coterie_use_threads": (None, (_pointer,) * 4),
    "coterie_level": (_int, (_int,)),
    "coterie_level_name": (ctypes.c_char_p, (_int,)),
    "coterie_most_columns": (_long, (_int, _int)),
    "coterie_route": (_long, (_pointer, _pointer, _int, *(_long,) * 3, *(_pointer,) * 8)),
    "coterie_experts": (_long, (_pointer,)),
    "coterie_experts_call_bytes": (_long, ()),
    "coterie_experts_scratch": (_long, (_pointer,)),
    "coterie_gemm_least_rows": (_long, (_int,)),
    "coterie_gemm_bytes": (_long, (_int, _int, _int, _long, _long)),
    "coterie_gemm_matmul": (None, (_int, _int, _int, *(_pointer,) * 3, *(_long,) * 3, _pointer, _pointer)),
    "coterie_quantise": (_long, (_int, _int, _int, _pointer, _int, *(_long,) * 4, _pointer, _pointer)),
    "coterie_dequantise": (None, (_int, _int, _int, _pointer, _pointer, _long, _long, _int, _pointer)),
    "coterie_matmul": (None, (_int, _int, _int, *(_pointer,) * 3, *(_long,) * 3, _pointer)),
    "coterie_rotate": (None, (_int, _pointer, _long, _long, _pointer, _pointer)),
    "coterie_publish_address": (None, (_pointer, _long)),
    "coterie_withdraw_address": (None, (_pointer,)),
    "coterie_touch_when_idle": (_long, (_pointer, _long)),
    "coterie_layer": (None, (_pointer, _pointer)),
    "coterie_layer_begin": (None, (_pointer, _pointer)),
    "coterie_layer_finish": (None, (_pointer, _pointer)),
    "coterie_layer_bytes": (_long, ()),
    "coterie_layer_call_bytes": (_long, ()),
    "coterie_layer_results_bytes": (_long, ()),
    "coterie_layer_times_bytes": (_long, ()),
    "coterie_dense_decoder": (None, (_pointer, _pointer)),
    "coterie_decoder_bytes": (_long, ()),
    "coterie_decoder_layer_bytes": (_long, ()),
    "coterie_decoder_call_bytes": (_long, ()),
    "coterie_token_bank_bytes": (_long, ()),
    "coterie_token_experts": (_long, (_pointer, _pointer, _long, _long)),
    "coterie_token_experts_there": (_long, (_pointer, _pointer, _long)),
    "coterie_router": (None, (_int, *(_pointer,) * 2, *(_long,) * 4, _int, *(_pointer,) * 3)),
    "coterie_token_attention": (None, (_int, _int, *(_pointer,) * 3, *(_long,) * 6, _float, *(_pointer,) * 2)),
    "coterie_rms_norm": (None, (*(_int,) * 4, *(_pointer,) * 2, *(_long,) * 2, _float, _pointer)),
}


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded library.

    Attributes:
        functions: The C functions by name.
        level: Index into ``LEVELS``.
        threaded: Whether it runs on torch's threads; if not, on one.
    """

    functions: ctypes.CDLL
    level: int
    threaded: bool

    @property
    def level_name(self) -> str:
        """Name of the level."""
        return LEVELS[self.level]

    @property
    def threads(self) -> int:
        """Threads that a call made now uses."""
        return torch.get_num_threads() if self.threaded else 1

    def __deepcopy__(self, memo: object) -> Library:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        # Loaded anew by whoever unpickles it.
        return _at, (self.level_name,)

    def lowered(self, name: str) -> Library:
        """The same at a lower level; at its own if that is lower already.

        Raises:
            UsageError: If there is no such level.
        """
        return replace(self, level=min(self.level, _level_of(name)))


def library() -> Library | None:
    """The library, or None if :func:`why_not` has a reason.

    Raises:
        UsageError: If ``COTERIE_CPU_CAPABILITY`` names no level.
    """
    loaded = _load()
    return loaded if isinstance(loaded, Library) else None


def why_not() -> str | None:
    """Why there is no library, or None if there is one."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def _at(level: str) -> Library:
    found = library()
    if found is None:
        raise UnsupportedError(
            f"This needs the native library, which is not here: {why_not()}",
            advice="Open the model again with coterie.load().",
        )
    return found.lowered(level)


@cache
def _load() -> Library | str:
    wanted = _level_of(os.environ.get(VARIABLE) or LEVELS[-1])
    if not LIBRARY.exists():
        return f"This installation has no {LIBRARY.name}. {_BUILT_BY}"
    try:
        functions = opened(LIBRARY)
    except (OSError, AttributeError) as error:
        return f"{LIBRARY} cannot be loaded: {error}. {_BUILT_BY}"
    if functions.coterie_fingerprint().decode() != fingerprint():
        return f"{LIBRARY} was built from other sources. {_BUILT_BY}"
    return Library(functions, int(functions.coterie_level(wanted)), _share_threads(functions))


def opened(path: Path) -> ctypes.CDLL:
    """The functions of a library file, with their types.

    Raises:
        OSError: If it cannot be loaded.
        AttributeError: If it lacks a function.
    """
    functions = ctypes.CDLL(str(path))
    for name, (result, arguments) in PROTOTYPES.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    return functions


def _share_threads(functions: ctypes.CDLL) -> bool:
    """Gives the library the very OpenMP runtime that torch computes with; False if there is none to be found."""
    symbols = runtime_symbols()
    if symbols is not None:
        functions.coterie_use_threads(*symbols)
    return symbols is not None


def _level_of(name: str) -> int:
    if name not in LEVELS:
        raise UsageError.unknown(f"level in {VARIABLE}", name, LEVELS)
    return LEVELS.index(name)

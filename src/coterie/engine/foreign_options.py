"""Options of ``from_pretrained`` that people try on :func:`coterie.load`: what to do instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from coterie.errors import UnsupportedError, UsageError

_DTYPE = "A store and a checkpoint keep the dtype that they have; leave it out."
_QUANTISED = "Make a smaller store with coterie.extract(..., scheme='int4') or coterie.quantize(), and open that."

_INSTEAD = {
    "device_map": "A streamed model is on the CPU, and memory= says how much of it stays there; leave device_map out.",
    "max_memory": "Write memory='8GiB' for the whole process.",
    "offload_folder": "Experts are read from where they are; leave it out.",
    "low_cpu_mem_usage": "It is always so; leave it out.",
    "dtype": _DTYPE,
    "torch_dtype": _DTYPE,
    "quantization_config": _QUANTISED,
    "load_in_4bit": _QUANTISED,
    "load_in_8bit": _QUANTISED,
    "trust_remote_code": "Code of a repository is never run; models of transformers itself need none.",
    "attn_implementation": "Attention is transformers' own choice for the CPU; leave it out.",
    "experts_implementation": "Streamed experts have their own; leave it out.",
    "token": "Log in with `hf auth login`, or set HF_TOKEN.",
    "cache_dir": "Set HF_HUB_CACHE.",
    "local_files_only": "Write offline=True.",
    "subfolder": "Give the path of the directory.",
}
"""Option → what to do."""


def check_others(others: Mapping[str, object], function: Callable[..., object]) -> None:
    """Refuses options that a function does not have.

    Args:
        others: What was given beyond its own.
        function: The function.

    Raises:
        UnsupportedError: If ``from_pretrained`` has such an option.
        UsageError: If nobody has; names the nearest.
    """
    for name, value in others.items():
        if name in _INSTEAD:
            raise UnsupportedError(f"{name}={value!r} is not supported.", advice=_INSTEAD[name], **{name: value})
        parameters = inspect.signature(function).parameters.values()
        own = [one.name for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD]
        raise UsageError.unknown(f"option of {function.__name__}()", name, own)

"""What tests may not leave behind: whatever runs after them in their process would depend on it."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OF_MODELS = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
"""Variables that models write down when they are opened (``coterie.plan.compiled``), and later ones go by."""

_COMING_AND_GOING = {*OF_MODELS, "PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}

_OTHERS = ("tqdm_monitor", "coterie-openmp-crowd")
"""Threads that a process has once, for as long as it lives."""

_PATIENCE_S = 20.0

_seen: dict[str, list[str]] = {}
"""The tables of each module: to look through all of them takes longer than to read these."""


def settings() -> dict[str, object]:
    """What holds for the whole process, by what it is called. Tables of names are told by their order, too."""
    import torch

    found: dict[str, object] = {
        "torch's threads": torch.get_num_threads(),
        "torch's dtype": torch.get_default_dtype(),
        "torch's device": str(torch.get_default_device()),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's precision of products": torch.get_float32_matmul_precision(),
        "torch's gradients": torch.is_grad_enabled(),
        "the working directory": Path.cwd(),
        "the log of coterie": _log(logging.getLogger("coterie")),
        "the log of everything": _log(logging.root),
    }
    found |= {
        f"the variable {name}": value
        for name, value in os.environ.items()
        if name not in _COMING_AND_GOING and not name.startswith("KMP_")  # of scikit-learn, when it is imported
    }
    found |= dict(_tables())
    return found


def _log(log: logging.Logger) -> tuple[object, ...]:
    # Handlers of pytest come and go with its phases.
    ours = tuple(handler for handler in log.handlers if not type(handler).__module__.startswith("_pytest"))
    return ours, log.level, log.propagate, log.disabled


def _tables() -> Iterator[tuple[str, object]]:
    for name, module in list(sys.modules.items()):
        if name.startswith("coterie."):
            if name not in _seen:
                _seen[name] = [
                    key
                    for key, value in vars(module).items()
                    # Those of transformers' are entered once, when they are needed.
                    if key.isupper() and isinstance(value, dict) and not key.startswith("AUTO_")
                ]
            for attribute in _seen[name]:
                yield f"{name}.{attribute}", tuple(vars(module)[attribute])
    experts: Any = sys.modules.get("transformers.integrations.moe")
    if experts is not None:
        yield "transformers' experts functions", tuple(experts.ALL_EXPERTS_FUNCTIONS.valid_keys())


def changed(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """What is not as it was. A table that was not loaded before has not changed."""
    return [
        f"{name}: {before.get(name)!r} became {after.get(name)!r}"
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and (name in before or name.startswith("the variable"))
    ]


def threads(before: set[threading.Thread]) -> list[str]:
    """Threads that have begun since and do not end, once nobody holds what they work for."""

    def begun() -> list[threading.Thread]:
        return [thread for thread in set(threading.enumerate()) - before if thread.name not in _OTHERS]

    if begun():
        gc.collect()  # models that a test left open
    end = time.monotonic() + _PATIENCE_S
    for thread in begun():
        thread.join(max(0.0, end - time.monotonic()))
    return sorted(thread.name for thread in begun())

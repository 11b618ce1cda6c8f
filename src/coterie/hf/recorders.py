"""The hooks by which transformers records outputs, which stay on a model's modules once something was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MODULE = "transformers.utils.output_capturing"


def only_idle_recorders(hooks: Mapping[int, Any]) -> bool:
    """Whether all of these forward hooks record outputs for transformers, and none of them would do so now.

    Args:
        hooks: The hooks of a module.
    """
    return all(_idle(hook) for hook in hooks.values())


def _idle(hook: Any) -> bool:
    if getattr(hook, "__module__", None) != _MODULE or not getattr(hook, "__closure__", None):
        return False
    try:
        from transformers.utils.output_capturing import _active_collector

        kept = dict(zip(hook.__code__.co_freevars, hook.__closure__, strict=True))
        recorded = _active_collector.get()
        return recorded is None or kept["key"].cell_contents not in recorded
    except (ImportError, AttributeError, KeyError):  # another release records otherwise
        return False

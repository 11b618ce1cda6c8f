"""Decoding by hand, as callers of a model may do it: the cache that a forward pass leaves for the next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kept_cache(output: object) -> dict[str, Any]:
    """The cache in what a forward pass returned, as the keyword argument of the next one; empty if it has none."""
    from coterie.hf.caches import is_cache

    if isinstance(output, Mapping):
        for name, value in output.items():
            if is_cache(value):
                return {str(name): value}
    return {}

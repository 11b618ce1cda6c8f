"""What kept results begin with: of what they are. Results of something else are not used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any


def versions() -> dict[str, str]:
    """The packages that figures depend on."""
    return {name: version(name) for name in ("coterie", "torch", "transformers")}


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The keys in which two headers differ, ascending; none if results belong together."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))

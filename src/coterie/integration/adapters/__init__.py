"""How each family of experts classes computes with experts that come and go."""

from coterie.integration.adapters.adapter import Adapter, AdapterSite
from coterie.integration.adapters.registry import adapt

__all__ = ["Adapter", "AdapterSite", "adapt"]

"""Settings that the library and the command line share, and what is taken where the user says nothing."""

from typing import Literal

DEFAULT_POLICY = "markov"
"""Name of the eviction policy: the best of them on recorded routing of real models."""

Prefetch = Literal["auto", "on", "off"]
"""When the experts that the next layer will probably ask for are read before it does; ``auto``: while it pays."""

DEFAULT_PREFETCH: Prefetch = "off"
"""It saves time with large experts; with small ones it may cost some, which ``auto`` does not always notice."""

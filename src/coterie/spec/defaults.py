"""Settings that the library and the command line share, and what is taken where the user says nothing."""

from typing import Literal

DEFAULT_POLICY = "markov"
"""Name of the eviction policy: the best of them on recorded routing of real models."""

Missing = Literal["error", "mask", "drop", "nearest", "fetch"]
"""What to do when an absent expert would be routed to. With ``fetch`` it is read from the checkpoint."""

Prefetch = Literal["auto", "on", "off"]
"""When the experts that the next layer will probably ask for are read before it does; ``auto``: where steps are
shorter for it."""

DEFAULT_PREFETCH: Prefetch = "auto"
"""Both ways are tried, and the faster one is kept."""

DEFAULT_WARM = "auto"
"""The setting of ``warm`` that goes by the request."""

PREFIX_DIR_NBYTES = 10 << 30
"""Bytes that the copy of the beginnings of prompts may take on disk."""

DEFAULT_LABEL = "survey"
"""The run that recording files goes on with where nobody names one."""

DEFAULT_DOMAIN = "unsorted"
"""What tokens count as in a profile where nobody says what the model is working on."""

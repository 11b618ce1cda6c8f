"""Settings that the library and the command line share, and what is taken where the user says nothing."""

from typing import Literal

DEFAULT_POLICY = "markov"
"""Name of the eviction policy: the best of them on recorded routing of real models."""

Missing = Literal["error", "mask", "drop", "nearest", "fetch"]
"""What to do when an absent expert would be routed to. With ``fetch`` it is read from the checkpoint."""

Prefetch = Literal["auto", "on", "off"]
"""When the experts that the next layer will probably ask for are read before it does; ``auto``: where steps are
shorter for it."""

Batching = Literal["exact", "fast"]
"""Whether answers that are computed together have the bits that each has alone, or may have others."""

DEFAULT_PREFETCH: Prefetch = "auto"
"""Both ways are tried, and the faster one is kept."""

DEFAULT_BATCHING: Batching = "exact"
"""No answer depends on who else is served."""

DEFAULT_PARALLEL = 8
"""Requests that run at once. How many of them share a pass is found out while it runs; those that are not among them
wait for a turn instead of in the queue."""

DEFAULT_WARM = "auto"
"""The setting of ``warm`` that goes by the request."""

PREFIX_DIR_NBYTES = 10 << 30
"""Bytes that the copy of the beginnings of prompts may take on disk."""

DEFAULT_LABEL = "survey"
"""The run that recording files goes on with where nobody names one."""

DEFAULT_DOMAIN = "unsorted"
"""What tokens count as in a profile where nobody says what the model is working on."""

PLANNED_PROMPT_TOKENS = 256
PLANNED_ANSWER_TOKENS = 270
"""Tokens of the prompt and of the answer that a plan's times are for; the answer has about 200 words of English."""

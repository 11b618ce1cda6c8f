"""What a request of a client asks of the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coterie.generation.asked import Prompt

if TYPE_CHECKING:
    from coterie.generation.sampling import Sampling
    from coterie.generation.speech import Voice


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of the engine.

    Attributes:
        prepare: Makes the prompt, in a thread of its own.
        sampling: How tokens are chosen.
        provenance: Whether it is told what experts were read for it.
        repeated: Whether others of the request have the same prompt.
        domain: What it is about, for the profile that is recorded.
        voice: How the answer is spoken; None if it is not.
    """

    prepare: Callable[[], Prompt]
    sampling: Sampling
    provenance: bool = False
    repeated: bool = False
    domain: str | None = None
    voice: Voice | None = None

"""Answers in speech, by models that have a talker: how they are asked for, and what comes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coterie.errors import UnsupportedError, UsageError
from coterie.generation.completion import Completion
from coterie.generation.frames import Samples
from coterie.generation.talking import MOST_FRAMES, SpeechEnd

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPEECH_RATE = 24_000
"""Samples per second that Qwen3-Omni's code2wav makes; no config states it."""

_USUAL = "ethan"
"""The voice that transformers takes where none is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """An answer in text and sound.

    Attributes:
        completion: The text.
        samples: float32 [samples] in [-1, 1] at :data:`SPEECH_RATE`.
        finish_reason: Why the sound ended: ``stop`` (all is said), ``length`` (``max_seconds`` reached), ``context``
            (the memory budget was made for no longer sequence), ``interrupted`` (the caller stopped it) or ``none``
            (there was no text to say, or it was stopped before the first sound).
        seconds: Seconds that making the sound took, beside the text.
        first_s: Seconds from the first token of the text to the first sound; None if none came.
    """

    completion: Completion
    samples: Samples
    finish_reason: SpeechEnd
    seconds: float
    first_s: float | None


def can_speak(model: PreTrainedModel) -> bool:
    """Whether the model has a talker."""
    return bool(getattr(model, "has_talker", False))


def voices(config: Any) -> list[str]:
    """The voices of a model, the usual one first; none if it does not speak.

    Args:
        config: Its configuration.
    """
    names = list(getattr(getattr(config, "talker_config", None), "speaker_id", None) or ())
    return sorted(names, key=lambda name: name != _USUAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How an answer is spoken.

    Attributes:
        name: One of the model's voices (``coterie voices MODEL``), in any case; None for the first of them.
        greedy: Whether the talker takes the likeliest code at each step. By default it draws, as it does in
            transformers (temperature 0.9, top-k 50), whatever is asked of the text.
        seed: Random numbers of its own for the talker. By default it goes on with those of the text, as in
            transformers; of a text that is drawn with a seed, the sound then comes only after its end.
        max_seconds: Longest sound; None for as long as the model speaks, 5.5 minutes at most.

    Raises:
        UsageError: If a number is out of range.
    """

    name: str | None = None
    greedy: bool = False
    seed: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            raise UsageError(f"The longest speech is a number of seconds above 0, not {self.max_seconds}.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"The seed of a voice is at least 0 and less than 2**63, not {self.seed}.")

    def most_frames(self, code2wav: Any) -> int:
        """Frames that it may become at most.

        Args:
            code2wav: The model's vocoder.
        """
        if self.max_seconds is None:
            return MOST_FRAMES
        frame_s = int(code2wav.total_upsample) / SPEECH_RATE
        return min(MOST_FRAMES, max(1, math.ceil(self.max_seconds / frame_s - 1e-9)))


def speaker_of(model: PreTrainedModel, voice: Voice) -> str:
    """The model's name for a voice.

    Raises:
        UnsupportedError: If the model does not speak.
        UsageError: If it has no such voice.
    """
    if not can_speak(model):
        raise UnsupportedError(
            f"{model.coterie.source.name} was opened as {type(model).__name__}, which has no talker.",
            advice="Open a whole omni model (component=None), or leave speech out.",
        )
    known = voices(model.config)
    if not known:
        raise UnsupportedError(f"{model.coterie.source.name} names no voices in its config.json.")
    name = (voice.name or known[0]).lower()
    if name not in known:
        raise UsageError.unknown("voice", voice.name or "", known)
    return name

"""What is said, and in which voices."""

from __future__ import annotations

from dataclasses import dataclass

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "red", "green", "blue", "yellow", "black", "white", "yes", "no", "stop", "go", "left", "right", "up", "down",
    "cat", "dog", "bird", "fish", "horse",
)  # fmt: skip
"""The words that the bundled thinker knows by ear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EspeakVoice:
    """A voice of espeak-ng.

    Attributes:
        name: Its name and variant, as ``espeak-ng -v`` takes it.
        speed: Words per minute.
        pitch: From 0 to 99.
    """

    name: str
    speed: int = 150
    pitch: int = 50


VOICES = {"ada": EspeakVoice(name="en-us+f3"), "ben": EspeakVoice(name="en-us+m3")}
"""The voices of the model, the usual one first."""

ASKING = (
    EspeakVoice(name="en-us+f3"),
    EspeakVoice(name="en-us+m2", speed=170, pitch=35),
    EspeakVoice(name="en-gb+f1", speed=130, pitch=65),
    EspeakVoice(name="en-gb+m3"),
    EspeakVoice(name="en-029"),
    EspeakVoice(name="en-us+f2", speed=165, pitch=60),
)
"""Voices that the thinker hears while the talker is trained."""

HELD_OUT = EspeakVoice(name="en-gb+f5")
"""The voice in which it is asked when it is judged: that of samples/dog.wav, and in the training of no part."""

"""The sound of a conversation's answers: where it goes, in which voice, and whether there is any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coterie.cli.speech import PLAY, SoundOutput, check_target_of_turns, numbered, speech_summary
from coterie.errors import InputError, UsageError

if TYPE_CHECKING:
    from coterie.generation.conversation import Conversation
    from coterie.generation.opened import OpenModel
    from coterie.generation.speech import Voice

_ON, _OFF = "on", "off"


class TurnSounds:
    """Has a conversation's answers spoken, or not.

    Args:
        opened: The model.
        conversation: With it; it has a voice while its answers are spoken.
        target: What --speak says; None if answers are not spoken.
        voice: How they are, if they are.

    Raises:
        UnsupportedError: If they are to be spoken, and the model does not speak.
        UsageError: If it has no such voice.
        InputError: If there is no chat template.
    """

    def __init__(
        self, opened: OpenModel, conversation: Conversation, *, target: str | None = None, voice: Voice | None = None
    ) -> None:
        from coterie.generation.speech import Voice as AnyVoice

        self._opened = opened
        self._conversation = conversation
        self._target = target
        self._voice = voice or AnyVoice()
        self._file: str | None = None
        if target is not None:
            self._speak()

    def obey(self, argument: str) -> str:
        """Does what /speak says, and tells how it is now.

        Args:
            argument: ``on``, ``off``, ``play`` or a file; nothing asks how it is.

        Raises:
            UnsupportedError: If the model does not speak.
            UsageError, OutputError: If sound cannot go there.
            InputError: If there is no chat template.
        """
        match argument:
            case "":
                pass
            case "off":
                self._conversation.voice = None
            case "on":
                self._turn_on(self._target or PLAY)
            case _:
                self._turn_on(argument)
        if self._conversation.voice is None:
            return "Answers are not spoken."
        return "Answers are spoken." if self._target == PLAY else f"The next answer is spoken into {self._next()}."

    def set(self, name: str, text: str) -> None:
        """Changes how answers are spoken.

        Args:
            name: One of :data:`VOICE_SETTINGS`.
            text: Its value.

        Raises:
            UsageError: If it has no such value.
        """
        attribute, read = VOICE_SETTINGS[name]
        try:
            changed = replace(self._voice, **{attribute: read(text)})
        except ValueError as error:  # which a UsageError is, too
            raise UsageError(f"{text!r} is not a value of {name}.") from error
        self._opened.check_speaks(changed)
        self._voice = changed
        if self._conversation.voice is not None:
            self._conversation.voice = changed

    @contextmanager
    def of_an_answer(self, should_stop: Callable[[], bool], *, spoken: bool) -> Iterator[dict[str, Any]]:
        """Inside, an answer is spoken, if answers are.

        Args:
            should_stop: Whether no more of it is wanted.
            spoken: Whether this one can be.

        Yields:
            What the conversation is asked with beside the question.
        """
        self._file = None
        if self._conversation.voice is None or not spoken:
            yield {}
            return
        from coterie.generation.speech import SPEECH_RATE

        self._file = self._next()
        output = SoundOutput(self._file, SPEECH_RATE, should_stop)
        try:
            yield {"on_sound": output.write}
        finally:
            output.end()

    def summary(self) -> str | None:
        """What came of the last answer's sound; None if it had none."""
        from coterie.generation.speech import SPEECH_RATE

        speech = self._conversation.speech
        if speech is None:
            return None
        where = f", in {self._file}" if self._file != PLAY and len(speech.samples) else ""
        return f"{speech_summary(speech, SPEECH_RATE)}{where}"

    def _turn_on(self, target: str) -> None:
        check_target_of_turns(target)
        self._target = target
        self._speak()

    def _speak(self) -> None:
        self._opened.check_speaks(self._voice)
        if not self._conversation.templated:
            raise InputError(
                f"{self._opened.runtime.source.name} has no chat template, and its talker needs one to know whose turn "
                f"it is.",
                advice="Pass a template (--chat-template).",
            )
        self._conversation.voice = self._voice

    def _next(self) -> str:
        assert self._target is not None
        return numbered(self._target)


def switch(name: str, text: str) -> bool:
    """A value that is on or off.

    Raises:
        UsageError: If it is neither.
    """
    values = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    if text.lower() not in values:
        raise UsageError(f"{text!r} is not a value of {name}.", advice="Say on or off.")
    return values[text.lower()]


VOICE_SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "voice": ("name", str),
    "voice_greedy": ("greedy", lambda text: switch("voice_greedy", text)),
    "max_speech": ("max_seconds", float),
}
"""What /set knows of speech -> the field of Voice, and how its value is read."""

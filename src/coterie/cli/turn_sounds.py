"""The sound of a conversation's answers: where it goes, in which voice, and whether there is any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from coterie.cli.speech import PLAY, SoundOutput, check_target_of_turns, numbered, speech_summary
from coterie.errors import SpeechError, UsageError

if TYPE_CHECKING:
    from coterie.cli.answer import AnswerPrinter
    from coterie.generation.completion import Completion
    from coterie.generation.conversation import Conversation
    from coterie.generation.opened import OpenModel
    from coterie.generation.speaking import Speaking
    from coterie.generation.speech import Speech, Voice


class Speaks(Protocol):
    """Begins an answer in speech."""

    def __call__(self, *, voice: Voice, should_stop: Callable[[], bool]) -> Speaking:
        """The answer on its way, spoken so; it ends when nobody wants more of it."""


class TurnSounds:
    """Has a conversation's answers spoken, or not.

    Args:
        opened: The model.
        conversation: With it.
        target: What --speak says; None if answers are not spoken.
        voice: How they are, if they are.

    Attributes:
        on: Whether answers are spoken.

    Raises:
        UnsupportedError: If they are to be spoken, and the model does not speak.
        UsageError: If it has no such voice.
        InputError: If there is no chat template.
    """

    def __init__(
        self, opened: OpenModel, conversation: Conversation, *, target: str | None = None, voice: Voice | None = None
    ) -> None:
        from coterie.generation.speech import Voice as AnyVoice

        self.on = False
        self._opened = opened
        self._conversation = conversation
        self._target = target or PLAY
        self._voice = voice or AnyVoice()
        self._file: str | None = None
        self._speech: Speech | None = None
        if target is not None:
            self._turn_on(target)

    def obey(self, argument: str) -> str:
        """Does what /speak says, and tells how it is now.

        Args:
            argument: ``on``, ``off``, ``play`` or a file; nothing asks how it is.

        Raises:
            UnsupportedError: If the model does not speak.
            UsageError, OutputError: If sound cannot go there.
            InputError: If there is no chat template.
        """
        if argument == "off":
            self.on = False
        elif argument:
            self._turn_on(self._target if argument == "on" else argument)
        if not self.on:
            return "Answers are not spoken."
        return "Answers are spoken." if self._target == PLAY else f"The next answer is spoken into {self._next}."

    def set(self, name: str, text: str) -> None:
        """Changes how answers are spoken.

        Args:
            name: One of :data:`VOICE_SETTINGS`.
            text: Its value.

        Raises:
            UnsupportedError: If the model does not speak.
            UsageError: If it has no such value.
        """
        from coterie.generation.speech import speaker_of

        attribute, read = VOICE_SETTINGS[name]
        try:
            changed = replace(self._voice, **{attribute: read(text)})
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"{text!r} is not a value of {name}.") from error
        speaker_of(self._opened.model, changed)
        self._voice = changed

    def answer(self, speak: Speaks, printer: AnswerPrinter, should_stop: Callable[[], bool]) -> Completion:
        """Has an answer spoken, and shows its text meanwhile.

        Args:
            speak: Begins it.
            printer: Shows it.
            should_stop: Whether no more of it is wanted.

        Raises:
            SpeechError: If the sound could not be made to its end. The text is shown.
            CoterieError: If there is no answer.
        """
        speaking = speak(voice=self._voice, should_stop=should_stop)
        self._file = self._next
        output = SoundOutput(self._file, speaking.rate, should_stop)
        failure: SpeechError | None = None
        try:
            try:
                speech = speaking.tell(on_text=printer.text, on_reasoning=printer.reasoning, on_sound=output.write)
            except SpeechError as error:
                speech, failure = speaking.result(), error
            self._speech = speech
            printer.end(speech.completion)
        finally:
            output.end()
        if failure is not None:
            raise failure
        return speech.completion

    def summary(self) -> str | None:
        """What came of the sound of the last answer, which is told once; None if it had none."""
        from coterie.generation.speech import SPEECH_RATE

        speech, self._speech = self._speech, None
        if speech is None:
            return None
        where = f", in {self._file}" if self._file != PLAY and len(speech.samples) else ""
        return f"{speech_summary(speech, SPEECH_RATE)}{where}"

    def _turn_on(self, target: str) -> None:
        from coterie.generation.speaking import no_template
        from coterie.generation.speech import speaker_of

        speaker_of(self._opened.model, self._voice)
        if not self._conversation.templated:
            raise no_template(self._opened.model)
        check_target_of_turns(target)
        self._target, self.on = target, True

    @property
    def _next(self) -> str:
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
    "voice_seed": ("seed", int),
    "max_speech": ("max_seconds", float),
}
"""What /set knows of speech -> the field of Voice, and how its value is read."""

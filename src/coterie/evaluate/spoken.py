"""A word that the bundled omni model hears and says, judged by the ears of the bundled model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coterie.engine.opening import open_streamed
from coterie.files.naming import BUNDLED_OMNI
from coterie.generation.chat import chat_inputs, user_message
from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.opened import OpenModel
from coterie.generation.sampling import Sampling
from coterie.generation.speaking import Speaking
from coterie.generation.speech import SPEECH_RATE, Voice, voices
from coterie.generation.wav_writer import wav_file
from coterie.spec.opening import Opening

_WORD = Sampling(max_new_tokens=12, greedy=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """One answer in speech.

    Attributes:
        asked: Name of the sound that it answers.
        text: The answer.
        voice: Whose voice it is in.
        sound: The WAV file.
        sound_s: Its length in seconds.
        made_in_s: Seconds that making it took.
        heard: What the listener hears in it.
    """

    asked: str
    text: str
    voice: str
    sound: Path
    sound_s: float
    made_in_s: float
    heard: str

    @property
    def returned(self) -> bool:
        """Whether what is heard is what was said."""
        return self.heard == self.text


def spoken_words(question: Path, folder: Path, ears: OpenModel, opening: Opening) -> Iterator[Spoken]:
    """Has the bundled omni model answer a sound, once in each of its voices, and listens to the answers.

    Args:
        question: A sound file.
        folder: Where the answers are written.
        ears: The listener.
        opening: How the model that speaks is opened.

    Raises:
        CoterieError: As loading and speaking do.
    """
    folder.mkdir(exist_ok=True)
    model = open_streamed(BUNDLED_OMNI, opening)
    try:
        speaker = OpenModel.of(model)
        inputs = chat_inputs(speaker.processors, [user_message("", audios=[question])])
        for name in voices(model.config):
            voice = Voice(name=name, greedy=True)
            answer = Speaking(model, speaker.processors.tokenizer, inputs, _WORD, voice=voice, streamed=False).result()
            sound = folder / f"{question.stem}-{name}.wav"
            with wav_file(sound, SPEECH_RATE) as writer:
                writer.write(answer.samples)
            yield Spoken(
                asked=question.name,
                text=answer.completion.text.strip(),
                voice=name,
                sound=sound,
                sound_s=len(answer.samples) / SPEECH_RATE,
                made_in_s=answer.seconds,
                heard=heard(ears, sound),
            )
    finally:
        model.coterie.close()


def heard(ears: OpenModel, sound: Path) -> str:
    """What a model hears in a sound file.

    Args:
        ears: The listener.
        sound: The file.
    """
    inputs = build_inputs(ears.processors, "", audios=[sound])
    return complete(ears.model, ears.processors.tokenizer, inputs, _WORD).text.strip()

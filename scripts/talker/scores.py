"""How often a word comes back: heard, said, and heard again, all by the bundled models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

import coterie
from coterie.generation.chat import chat_inputs
from coterie.generation.speaking import Speaking
from coterie.generation.speech import Voice
from talker.ears import Ears
from talker.words import VOICES, WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Of all words.

    Attributes:
        understood: Answered with the word that was asked.
        spoken: Whose sound is heard as the answer's text.
        returned: Both.
        wrong: The others: asked, answered, heard.
    """

    understood: int
    spoken: int
    returned: int
    wrong: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        lost = "; ".join(f"{asked}: {text!r}, heard {heard!r}" for asked, text, heard in self.wrong)
        return (
            f"understood {self.understood}, spoken {self.spoken}, returned {self.returned} of {len(WORDS)}"
            f"{f' ({lost})' if lost else ''}"
        )


def scores(asked: Mapping[str, Path], ears: Ears) -> dict[str, Score]:
    """The score of each voice, greedy and drawn as usual.

    Args:
        asked: Word → a recording of it.
        ears: Who listens.
    """
    model = coterie.load("bundled-omni", expert_memory="50%", threads=1)
    try:
        return {
            f"{voice}, {'greedy' if greedy else 'drawn'}": _score(model, asked, Voice(name=voice, greedy=greedy), ears)
            for voice in VOICES
            for greedy in (True, False)
        }
    finally:
        model.coterie.close()


def _score(model: PreTrainedModel, asked: Mapping[str, Path], voice: Voice, ears: Ears) -> Score:
    processors = coterie.processors(model)
    understood = spoken = returned = 0
    wrong = []
    for seed, word in enumerate(WORDS):
        inputs = chat_inputs(processors, [{"role": "user", "content": [{"type": "audio", "path": asked[word]}]}])
        wishes = coterie.Sampling(max_new_tokens=6, greedy=True, seed=seed)
        answer = Speaking(model, processors.tokenizer, inputs, wishes, voice=voice, streamed=False).result()
        text = answer.completion.text.strip()
        heard = ears.heard(answer.samples) if len(answer.samples) else ""
        understood += text == word
        spoken += heard == text
        returned += text == word == heard
        if not text == word == heard:
            wrong.append((word, text, heard))
    return Score(understood=understood, spoken=spoken, returned=returned, wrong=tuple(wrong))

"""The bundled thinker as a listener: what it hears, and what it keeps of a sound."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from transformers import BatchFeature

import coterie
from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.wav_writer import wav_file
from talker.configuration import AUDIO_PAD, READ_LAYER
from talker.synthesis import RATE, Samples

FRAME_OF_PROMPT = (
    "<|im_start|><|audio_end|><|audio_start|><|audio_pad|><|audio_end|><|im_start|><|im_end|><|audio_end|>"
)
"""A turn of the user that is a sound, and the beginning of the model's, as the chat template makes them."""


class Ears:
    """The bundled model with all of its experts in memory."""

    def __enter__(self) -> Ears:
        self._model = coterie.load("bundled", expert_memory="100%", threads=1)
        self._processors = coterie.processors(self._model)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.coterie.close()

    def token_ids(self, word: str) -> list[int]:
        """The tokens with which it answers that it heard a word; the end of text is not among them."""
        ids: list[int] = self._processors.tokenizer(word, add_special_tokens=False)["input_ids"]
        return ids

    def embedding(self) -> Tensor:
        """Its input embedding, float32 [V, D]."""
        weight: Tensor = self._model.get_input_embeddings().weight
        return weight.detach().float().clone()

    def heard(self, samples: Samples) -> str:
        """The word that it hears, in no frame but the sound's own."""
        with tempfile.TemporaryDirectory() as folder:
            inputs = self._inputs("<|audio_start|><|audio_pad|><|audio_end|>", samples, Path(folder))
        wishes = coterie.Sampling(max_new_tokens=6, greedy=True)
        return complete(self._model, self._processors.tokenizer, inputs, wishes).text.strip()

    def hidden(self, samples: Samples) -> Tensor:
        """What the talker reads of a sound, float32 [sound tokens, D]: :data:`READ_LAYER`'s hidden states."""
        with tempfile.TemporaryDirectory() as folder:
            inputs = self._inputs(FRAME_OF_PROMPT, samples, Path(folder))
        with torch.no_grad():
            outputs = self._model(**inputs.to(self._model.dtype), output_hidden_states=True)
        return outputs.hidden_states[READ_LAYER][inputs["input_ids"] == AUDIO_PAD].float().clone()

    def _inputs(self, text: str, samples: Samples, folder: Path) -> BatchFeature:
        path = folder / "sound.wav"
        with wav_file(path, RATE) as writer:
            writer.write(samples)
        return build_inputs(self._processors, text, audios=[path], add_special_tokens=False)

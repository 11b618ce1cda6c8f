"""Answers in speech, by models that have a talker: text first, then its waveform."""

from __future__ import annotations

import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from coterie.errors import UnsupportedError, UsageError
from coterie.files.replacing import replacing
from coterie.generation.completion import Completion, effective_config, finish, wished
from coterie.generation.draws import drawing
from coterie.generation.interruption import stoppable
from coterie.generation.one_sequence import check_settings, files_named
from coterie.generation.sampling import Sampling
from coterie.generation.sequence import Sequence, Stream
from coterie.generation.steps import generated
from coterie.generation.streaming import TextStream
from coterie.hf.generation_steps import Prepared, hand_over, one_by_one
from coterie.passes.current import Request, Stopped

if TYPE_CHECKING:
    from transformers import BatchFeature, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

SPEECH_RATE = 24_000
"""Samples per second that Qwen3-Omni's code2wav makes; no config states it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """An answer in text and sound.

    Attributes:
        completion: The text.
        samples: float32 [samples] in [-1, 1] at :data:`SPEECH_RATE`; None if it was stopped before it was ready.
        seconds: Seconds that making the sound took after the text was there.
    """

    completion: Completion
    samples: npt.NDArray[np.float32] | None
    seconds: float


def can_speak(model: PreTrainedModel) -> bool:
    """Whether the model has a talker."""
    return bool(getattr(model, "has_talker", False))


def speak(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: BatchFeature,
    sampling: Sampling | None = None,
    *,
    speaker: str | None = None,
    on_text: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Speech:
    """Generates an answer and its waveform.

    Args:
        model: A whole omni model from :func:`coterie.load`.
        tokenizer: Its tokenizer.
        inputs: From :func:`~coterie.generation.chat.chat_inputs`: the talker needs to see whose turn is whose.
        sampling: How the thinker's tokens are chosen; the talker samples as it does in transformers.
        speaker: One of the model's voices; by default its first.
        on_text: As in :func:`~coterie.generation.completion.complete`.
        should_stop: As in :func:`~coterie.generation.completion.complete`.

    Raises:
        UnsupportedError: If the model has no talker, or the generation config asks for what one sequence cannot do.
        UsageError: If it has no such voice.
    """
    if not can_speak(model):
        raise UnsupportedError(
            f"{model.coterie.source.name} was opened as {type(model).__name__}, which has no talker.",
            advice="Open a whole omni model (component=None), or leave speech out.",
        )
    voices = list(model.config.talker_config.speaker_id)
    voice = speaker or voices[0]
    if voice.lower() not in voices:
        raise UsageError.unknown("speaker", voice, voices)
    wishes = sampling or Sampling()
    if wishes.logprobs is not None or wishes.prompt_logprobs is not None:
        raise UnsupportedError("Answers in speech tell no log probabilities.", advice="Leave them out.",
                               field="logprobs")  # fmt: skip
    model.coterie.expect_request(inputs, speech=True)
    config = effective_config(model, tokenizer, inputs, wishes)
    check_settings(model, config, streamed=True)
    stream = TextStream(tokenizer, on_text, stops=wishes.stop)
    prompt = int(inputs["input_ids"].shape[1])
    samples: npt.NDArray[np.float32] | None = None
    start = time.perf_counter()
    interrupted = False
    try:
        with stoppable(should_stop) as request, drawing(wishes.seed) as draws, files_named(model):
            if draws is not None:
                # The talker draws in the middle of its passes, too.
                draws.begin()
            options = {"eos_token_id": config.eos_token_id} | wished(model, tokenizer, config, wishes, prompt=prompt)
            _, waveform = model.generate(
                **inputs.to(model.dtype),
                speaker=voice,
                return_audio=True,
                thinker_generation_config=config,
                thinker_max_new_tokens=config.max_new_tokens,
                **{f"thinker_{name}": value for name, value in options.items()},
                **_loops(model, config, request, stream),
            )
        samples = waveform.reshape(-1).float().numpy()
    except Stopped:
        interrupted = True
    end = time.perf_counter()
    completion = finish(stream, inputs, config, wishes, start=start, interrupted=interrupted)
    return Speech(completion=completion, samples=samples, seconds=end - (stream.last_at or end))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Generated:
    """What the talker reads of the thinker, and the sound of the talker, under transformers' names.

    Attributes:
        sequences: Tokens [1, T], prompt included.
        hidden_states: Of each pass, what the model returned as such.
    """

    sequences: Tensor
    hidden_states: tuple[Any, ...]


def _loops(model: PreTrainedModel, config: GenerationConfig, request: Request, stream: TextStream) -> dict[str, Any]:
    """Options of the whole model's ``generate`` by which its thinker and its talker generate in our loop."""
    options: dict[str, Any] = {}
    if one_by_one(model.thinker, config):
        options["thinker_custom_generate"] = _loop(request, stream)
    else:
        options["thinker_streamer"] = stream
    if one_by_one(model.talker, model.talker.generation_config):
        options["talker_custom_generate"] = _loop(request, None)
    return options


def _loop(request: Request, stream: Stream | None) -> Callable[..., _Generated]:
    def generate(*args: Any, **kwargs: Any) -> _Generated:
        prepared: Prepared = hand_over(*args, **kwargs)
        hidden: list[Any] = []
        sequence = Sequence(
            prepared, request=request, stream=stream, keep=lambda outputs: hidden.append(outputs.hidden_states)
        )
        return _Generated(sequences=generated(sequence).ids, hidden_states=tuple(hidden))

    return generate


def write_wav(path: str | Path, samples: npt.NDArray[np.float32], rate: int = SPEECH_RATE) -> None:
    """Writes a mono WAV file of 16-bit samples.

    Args:
        path: The file; replaced if it is there.
        samples: float32 [samples]; what is beyond [-1, 1] is clipped.
        rate: Samples per second.
    """
    values = (np.clip(samples, -1.0, 1.0) * 32767).round().astype("<i2")
    with replacing(path) as partial, wave.open(str(partial), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.tobytes())

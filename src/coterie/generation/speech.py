"""Answers in speech, by models that have a talker: text first, then sound, which comes while it is made."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coterie.errors import CoterieError, SpeechError, UnsupportedError, UsageError
from coterie.generation.completion import Completion, effective_config, end_tokens, finish, wished
from coterie.generation.draws import drawing
from coterie.generation.interruption import stoppable
from coterie.generation.one_sequence import check_settings, files_named, longest
from coterie.generation.sampling import Sampling
from coterie.generation.sequence import Sequence as Tokens
from coterie.generation.steps import generated
from coterie.generation.streaming import TextStream
from coterie.generation.vocoder import Vocoder
from coterie.hf.code_predictor import predicting
from coterie.hf.generation_steps import Prepared, hand_over, one_by_one, prompt_length
from coterie.hf.hidden_states import keep_states_of
from coterie.passes.current import Request, Stopped

if TYPE_CHECKING:
    from transformers import BatchFeature, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

SPEECH_RATE = 24_000
"""Samples per second that Qwen3-Omni's code2wav makes; no config states it."""

Samples = npt.NDArray[np.float32]
SpeechEnd = Literal["stop", "length", "context", "interrupted", "none"]

_FIRST_FRAMES, _FRAMES = 8, 25
"""Frames of the first chunk of sound, which is waited for, and of those after it."""
_CHUNK_FRAMES = 300
"""Frames that transformers decodes at once."""
_USUAL = "ethan"
"""The voice that transformers takes where none is asked for."""
_MOST_FRAMES = 4096
"""What transformers takes: 5.5 minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """An answer in text and sound.

    Attributes:
        completion: The text.
        samples: float32 [samples] in [-1, 1] at :data:`SPEECH_RATE`.
        finish_reason: Why the sound ended: ``stop`` (all is said), ``length`` (``max_seconds`` reached), ``context``
            (the memory budget was made for no longer sequence), ``interrupted`` (the caller stopped it) or ``none``
            (there was no text to say, or it was stopped before the first sound).
        seconds: Seconds that making the sound took after the text was there.
        first_s: Of these, seconds until the first sound was there; None if none came.
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
        name: One of the model's :func:`voices`, in any case; None for the first of them.
        greedy: Whether the talker takes the likeliest code at each step. By default it draws, as it does in
            transformers (temperature 0.9, top-k 50), whatever is asked of the text.
        max_seconds: Longest sound; None for as long as the model speaks, 5.5 minutes at most.
    """

    name: str | None = None
    greedy: bool = False
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            raise UsageError(f"The longest speech is a number of seconds above 0, not {self.max_seconds}.")


def speak(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: BatchFeature,
    sampling: Sampling | None = None,
    *,
    voice: Voice | None = None,
    on_text: Callable[[str], None] | None = None,
    on_sound: Callable[[Samples], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Speech:
    """Generates an answer and its sound.

    Args:
        model: A whole omni model from :func:`coterie.load`.
        tokenizer: Its tokenizer.
        inputs: From :func:`~coterie.generation.chat.chat_inputs`: the talker needs to see whose turn is whose.
        sampling: How the thinker's tokens are chosen, and the seed of both.
        voice: How it is spoken.
        on_text: As in :func:`~coterie.generation.completion.complete`.
        on_sound: Told the sound while it is made, chunk by chunk: float32 [samples], 0.6 seconds first, then 2. Joined,
            the chunks are the sound of all frames in one decode to within rounding. Without it all frames are decoded
            at the end as transformers does, to the bit; beyond 24 seconds that leaves out some samples (23 ms) every
            24 seconds, and it takes more memory.
        should_stop: As in :func:`~coterie.generation.completion.complete`. What was spoken by then is kept.

    Raises:
        UnsupportedError: If the model has no talker, or the generation config asks for what one sequence cannot do.
        UsageError: If it has no such voice.
        SpeechError: If the sound could not be made to its end. What there is of it is its ``speech``.
        CoterieError: As :func:`~coterie.generation.completion.complete` raises it.
    """
    if not can_speak(model):
        raise UnsupportedError(
            f"{model.coterie.source.name} was opened as {type(model).__name__}, which has no talker.",
            advice="Open a whole omni model (component=None), or leave speech out.",
        )
    how = voice or Voice()
    known = voices(model.config)
    if not known:
        raise UnsupportedError(f"{model.coterie.source.name} names no voices in its config.json.")
    name = (how.name or known[0]).lower()
    if name not in known:
        raise UsageError.unknown("voice", how.name or "", known)
    wishes = sampling or Sampling()
    if wishes.logprobs is not None or wishes.prompt_logprobs is not None:
        raise UnsupportedError("Answers in speech tell no log probabilities.", advice="Leave them out.",
                               field="logprobs")  # fmt: skip
    model.coterie.expect_request(inputs, speech=True)
    config = effective_config(model, tokenizer, inputs, wishes)
    check_settings(model, config, streamed=True)
    stream = TextStream(tokenizer, on_text, stops=wishes.stop)
    prompt = int(inputs["input_ids"].shape[1])
    sound = _Sound(model.code2wav, on_sound)
    talking: _Talking | None = None
    failure: CoterieError | None = None
    start = time.perf_counter()
    interrupted = False
    try:
        with (
            stoppable(should_stop) as request,
            drawing(wishes.seed) as draws,
            files_named(model),
            model.coterie.speaking(),
        ):
            if draws is not None:
                # The talker draws in the middle of its passes, too.
                draws.begin()
            talking = _Talking(model, how, request, sound)
            options = {"eos_token_id": config.eos_token_id} | wished(model, tokenizer, config, wishes, prompt=prompt)
            _, waveform = model.generate(
                **inputs.to(model.dtype),
                speaker=name,
                return_audio=True,
                thinker_generation_config=config,
                thinker_max_new_tokens=config.max_new_tokens,
                **{f"thinker_{name}": value for name, value in options.items()},
                **_thinking(model, config, request, stream),
                **talking.options(),
            )
            # Nothing has left it: the talker generates in a way of its own, and so does the vocoder.
            sound.take(waveform.reshape(-1).float())
            talking.ended_elsewhere(waveform.numel())
    except _Spoken:
        pass
    except Stopped:
        interrupted = True
    except CoterieError as error:
        if talking is None or not talking.begun:
            raise
        failure = error
    with model.coterie.speaking():
        samples = sound.end()
    end = time.perf_counter()
    ended: SpeechEnd = "interrupted" if interrupted else "none" if talking is None else talking.reason
    text_only = interrupted and not (talking is not None and talking.begun)
    completion = finish(stream, inputs, config, wishes, start=start, interrupted=text_only)
    said = stream.last_at or end
    speech = Speech(
        completion=completion,
        samples=samples,
        finish_reason=ended if len(samples) or ended == "interrupted" else "none",
        seconds=end - said,
        first_s=None if sound.first_at is None else sound.first_at - said,
    )
    if failure is not None:
        raise SpeechError(
            f"The answer could not be spoken to its end: {failure}", advice=failure.advice, speech=speech
        ) from failure
    return speech


class _Spoken(Exception):
    """Leaves transformers' ``generate`` once all frames are there, which is before it makes their sound."""


class _Sound:
    """Frames on their way to samples."""

    def __init__(self, code2wav: Any, on_sound: Callable[[Samples], None] | None) -> None:
        self._code2wav = code2wav
        self._on_sound = on_sound
        self._vocoder = None if on_sound is None else Vocoder(code2wav)
        self._frames: list[Tensor] = []
        self._chunks: list[Samples] = []
        self._ended = False
        self.first_at: float | None = None

    def add(self, frame: Tensor) -> None:
        """Takes a frame's codes, int64 [Q]."""
        self._frames.append(frame)
        if self._vocoder is not None and len(self._frames) >= (_FRAMES if self._chunks else _FIRST_FRAMES):
            self._flush(self._vocoder)

    def end(self) -> Samples:
        """All samples."""
        if self._frames and self._vocoder is not None:
            self._flush(self._vocoder)
        elif self._frames:
            codes = torch.stack(self._frames, dim=1)
            with torch.no_grad():
                waveform = self._code2wav.chunked_decode(codes[None])
            self._frames.clear()
            self.take(waveform.reshape(-1).float())
        return np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.float32)

    def _flush(self, vocoder: Vocoder) -> None:
        codes = torch.stack(self._frames, dim=1)
        self._frames.clear()
        self.take(vocoder.decode(codes))

    def take(self, samples: Tensor) -> None:
        """Takes the next samples, float32 [samples]."""
        chunk: Samples = samples.numpy()
        self.first_at = self.first_at or time.perf_counter()
        self._chunks.append(chunk)
        if self._on_sound is not None and len(chunk):
            self._on_sound(chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Generated:
    """What the talker reads of the thinker, under transformers' names.

    Attributes:
        sequences: Tokens [1, T], prompt included.
        hidden_states: Of each pass, the two that are read: what went into the layers, and what the talker accepts.
    """

    sequences: Tensor
    hidden_states: tuple[dict[int, Tensor], ...]


def _thinking(model: PreTrainedModel, config: GenerationConfig, request: Request, stream: TextStream) -> dict[str, Any]:
    """Options of the whole model's ``generate`` by which its thinker generates in our loop."""
    if not one_by_one(model.thinker, config):
        return {"thinker_streamer": stream}
    read = (0, model.config.talker_config.accept_hidden_layer)
    ends = end_tokens(config)

    def generate(*args: Any, **kwargs: Any) -> _Generated:
        prepared: Prepared = hand_over(*args, **kwargs)
        keep_states_of(read, prepared.kwargs)
        hidden: list[dict[int, Tensor]] = []
        sequence = Tokens(
            prepared,
            request=request,
            stream=stream,
            keep=lambda outputs: hidden.append({layer: outputs.hidden_states[layer] for layer in read}),
        )
        ids = generated(sequence).ids
        if int(ids[0, -1]) not in ends:
            # It was cut: the last token went through no layer, and what it means is said all the same.
            last = model.thinker.get_input_embeddings()(ids[:, -1:])
            hidden.append(dict.fromkeys(read, last))
        if len(hidden) == 1:
            raise _Spoken  # the answer has no text
        return _Generated(sequences=ids, hidden_states=tuple(hidden))

    return {"thinker_custom_generate": generate}


class _Talking:
    """The talker's part of an answer."""

    def __init__(self, model: PreTrainedModel, voice: Voice, request: Request, sound: _Sound) -> None:
        self._model = model
        self._voice = voice
        self._request = request
        self._sound = sound
        self.begun = False
        self.reason: SpeechEnd = "none"

    def options(self) -> dict[str, Any]:
        """Options of the whole model's ``generate`` by which its talker speaks."""
        talker = self._model.talker
        options: dict[str, Any] = {"talker_max_new_tokens": self._asked() + 1}
        if self._voice.greedy:
            options["talker_do_sample"] = False
        if one_by_one(talker, talker.generation_config):
            options["talker_custom_generate"] = self._generate
        return options

    def ended_elsewhere(self, samples: int) -> None:
        """It was transformers' own way to speak that has made so many samples."""
        asked = self._asked()
        # Of each chunk a part of a frame is missing.
        fewest = (asked - math.ceil(asked / _CHUNK_FRAMES)) * int(self._model.code2wav.total_upsample)
        self.reason = "length" if samples > fewest else "stop"

    def _asked(self) -> int:
        """Frames that it may become at most, as its caller wants it."""
        seconds = self._voice.max_seconds
        if seconds is None:
            return _MOST_FRAMES - 1
        frame_s = int(self._model.code2wav.total_upsample) / SPEECH_RATE
        return min(_MOST_FRAMES - 1, max(1, math.ceil(seconds / frame_s - 1e-9)))

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        self.begun = True
        prepared: Prepared = hand_over(*args, **kwargs)
        room = self._room(prepared)
        if room is not None:
            prepared.criteria.append(lambda ids, scores, **_: torch.tensor([ids.shape[1] > room]))
        sequence = Tokens(prepared, request=self._request, keep=self._take)
        with predicting(self._model.talker.code_predictor, greedy=self._voice.greedy):
            ids = generated(sequence).ids
        self.reason = self._ended(ids, prepared.config, room)
        raise _Spoken

    def _room(self, prepared: Prepared) -> int | None:
        """Frames that there is memory for; None if nothing limits them."""
        if self._model.coterie.max_context is None:
            return None
        most = longest(self._model, prepared.config)
        return None if most is None else max(0, most - prompt_length(prepared))

    def _take(self, outputs: Any) -> None:
        """Of a pass of the talker: the frame that the code before has become."""
        frame = outputs.hidden_states[-1]
        if frame is not None:
            self._sound.add(frame[0])

    def _ended(self, ids: Tensor, config: GenerationConfig, room: int | None) -> SpeechEnd:
        if int(ids[0, -1]) in end_tokens(config):
            return "stop"
        return "context" if room is not None and room <= self._asked() else "length"

"""Generates the continuation of one prompt, as a stream that can be stopped, with times."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from coterie.generation.answers import AnswerReader, ToolCall
from coterie.generation.draws import Draws, drawing
from coterie.generation.interruption import stoppable
from coterie.generation.logprobs import LogprobsAsked, LogprobsTold, NewLogprobs, TokenLogprob
from coterie.generation.one_sequence import beams, check_settings, files_named, longest, sequences_at_once
from coterie.generation.sampling import Sampling
from coterie.generation.sequence import Keeper, Sequence
from coterie.generation.shaping import check_tokens, shaping
from coterie.generation.steps import generated
from coterie.generation.streaming import StopAtTexts, TextStream
from coterie.hf.context import DEFAULT_CONTEXT
from coterie.hf.generation_steps import Prepared, one_by_one, prepare, prepare_in_pieces
from coterie.hf.hidden_states import keep_states_of
from coterie.hf.talker import accepted_layer, writing_part
from coterie.passes.current import Request, Stopped

if TYPE_CHECKING:
    from transformers import BatchFeature, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

FinishReason = Literal["stop", "length", "context", "time", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was generated after a prompt.

    Attributes:
        prompt_tokens: Tokens of the prompt, pictures and sounds included.
        token_ids: The new tokens, end token included.
        text: Their text without special tokens, and before what ended it of the caller's ``stop``; of an answer with
            parts, what the model says.
        reasoning: What it thought before, where the answer has parts.
        tool_calls: What it wants called, likewise.
        reused_tokens: Tokens of the prompt that an earlier request had computed already.
        kept_tokens: Tokens of the prompt that were computed and are kept for later requests.
        picture_tokens: Tokens of the prompt that stand for pictures, where an engine answers.
        sound_tokens: The same of sounds, those of videos included.
        video_tokens: The same of the frames of videos.
        finish_reason: ``stop`` (the model ended, or a text came that ends the answer), ``length`` (``max_new_tokens``
            reached), ``context`` (the memory budget was made for no longer sequence), ``time`` (``max_time`` of the
            generation config is over) or ``interrupted`` (the caller stopped it).
        prefill_s: Seconds until the first new token was there (until the end, if none came).
        decode_s: Seconds from the first to the last new token.
        logprobs: How likely the new tokens were, if that was asked for; up to the last one whose text is in the answer.
        prompt_logprobs: The same of the prompt's tokens.
    """

    prompt_tokens: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prefill_s: float
    decode_s: float
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reused_tokens: int = 0
    kept_tokens: int = 0
    picture_tokens: int = 0
    sound_tokens: int = 0
    video_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens of the prompt that were computed, per second."""
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """New tokens after the first per second; 0 if there is only one."""
        return (len(self.token_ids) - 1) / self.decode_s if self.decode_s > 0 else 0.0


class Reuse(Protocol):
    """Where requests find what earlier ones have computed of the same tokens."""

    @property
    def piece(self) -> int | None:
        """Tokens of a prompt in one pass; None for all of them."""

    def begin(self, prepared: Prepared) -> Keeper | None:
        """Puts it into the request's cache; returns who keeps what is computed now, None if nothing is to be kept."""


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: BatchFeature,
    sampling: Sampling | None = None,
    *,
    on_text: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    reader: AnswerReader | None = None,
    on_logprobs: LogprobsTold | None = None,
    on_prompt_logprobs: LogprobsTold | None = None,
    piece: int | None = None,
    reuse: Reuse | None = None,
) -> Completion:
    """Generates after one prompt.

    Args:
        model: From :func:`coterie.load`; one that generates text.
        tokenizer: Its tokenizer.
        inputs: From :func:`~coterie.generation.inputs.build_inputs`, a batch of one.
        sampling: How tokens are chosen; by default as the model's generation config says.
        on_text: Told the text piece by piece, whole characters only.
        should_stop: Asked before every layer; True ends generation and keeps what is there.
        reader: Tells the parts of an answer apart; without one, all of it is text.
        on_logprobs: Told how likely tokens were, before the piece of text that they are part of; with ``logprobs``.
        on_prompt_logprobs: Told how likely the prompt's tokens were, before the first new one; with
            ``prompt_logprobs``.
        piece: Tokens of the prompt that are computed in one pass, as :class:`~coterie.generation.sequence.Sequence`
            takes it; None for all of them.
        reuse: Where what was computed of the prompt's beginning is found, and kept; it says what a piece is.

    Raises:
        ContextLengthError: If the prompt is longer than the memory budget was made for.
        InputError: If the model does not have a token that ``sampling`` names, or the form of the answer is none.
        UnsupportedError: If the generation config asks for what one sequence cannot do.
        LoadError: If transformers cannot generate with it.
        CoterieError: As reading experts does.
    """
    completing = Completing(
        model, tokenizer, inputs, sampling, on_text=on_text, reader=reader, on_logprobs=on_logprobs,
        on_prompt_logprobs=on_prompt_logprobs,
    )  # fmt: skip
    return completing.run(should_stop, piece=piece, reuse=reuse)


class Completing:
    """A completion on its way, by whoever takes it there: a :attr:`sequence` in steps, or a :meth:`search` in one call.

    Args:
        model: As :func:`complete` takes it, and so the following.
        tokenizer: Its tokenizer.
        inputs: The prompt.
        sampling: How tokens are chosen.
        on_text: Told the text.
        reader: Tells the parts of an answer apart.
        on_logprobs: Told how likely its tokens were.
        on_prompt_logprobs: Told how likely the prompt's were.
        speech: Whether it is to be spoken.

    Attributes:
        sampling: How tokens are chosen.
        config: What that makes of the model's generation config.
        in_steps: Whether its tokens are chosen one after the other.
        made: Its sequence, once there is one.
        stream: Makes text of its tokens.

    Raises:
        UnsupportedError: If the generation config asks for what one sequence cannot do.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        inputs: BatchFeature,
        sampling: Sampling | None = None,
        *,
        on_text: Callable[[str], None] | None = None,
        reader: AnswerReader | None = None,
        on_logprobs: LogprobsTold | None = None,
        on_prompt_logprobs: LogprobsTold | None = None,
        speech: bool = False,
    ) -> None:
        self.sampling = sampling or Sampling()
        self._model = model
        self._tokenizer = tokenizer
        self._inputs = inputs
        self._reader = reader
        model.coterie.expect_request(inputs, speech=speech)
        self.config = effective_config(model, tokenizer, inputs, self.sampling)
        check_settings(model, self.config)
        self._writer = writing_part(model)
        self.in_steps = one_by_one(self._writer, self.config)
        self._logprobs = LogprobsAsked(self.sampling, inputs["input_ids"][0], on_logprobs, on_prompt_logprobs)
        self.made: Sequence | None = None
        self.stream = _stream(tokenizer, on_text, self.sampling, reader, self._logprobs.new)
        self._start = time.perf_counter()
        self._keeper: Keeper | None = None

    @property
    def _marks(self) -> tuple[str, ...]:
        return () if self._reader is None else self._reader.marks

    def run(
        self, should_stop: Callable[[], bool] | None, *, piece: int | None = None, reuse: Reuse | None = None
    ) -> Completion:
        """Takes it to its end, as :func:`complete` does; arguments and errors are of there."""
        interrupted, model = False, self._model
        try:
            with stoppable(should_stop) as request, drawing(self.sampling.seed) as draws, files_named(model):
                if self.in_steps:
                    generated(self.sequence(request, draws=draws, piece=piece, reuse=reuse))
                else:
                    self.search(draws)
        except Stopped:
            interrupted = True
        return self.end(interrupted=interrupted)

    def renew(self, wanted: int | None, most: int, *, on_text: Callable[[str], None], reader: AnswerReader) -> None:
        """Has its tokens read once more from the first on, and up to so many of them.

        Args:
            wanted: New tokens that are wanted of it; None for as many as there is room for.
            most: New tokens at which it ends.
            on_text: Told the text.
            reader: Tells the parts of the answer apart.
        """
        self.sampling = replace(self.sampling, max_new_tokens=wanted)
        self.config.max_new_tokens = most
        self._reader = reader
        self.stream = _stream(self._tokenizer, on_text, self.sampling, reader)
        self._start = time.perf_counter()

    def room(self) -> int | None:
        """New tokens that there is room for; None if nothing says so."""
        return _room(self._model, self.config, int(self._inputs["input_ids"].shape[1]))

    def take_inputs(self, inputs: BatchFeature | None) -> None:
        """Is given its prompt once more; None lets go of pictures and sounds."""
        kept = {"input_ids": self._inputs["input_ids"]}
        self._inputs = type(self._inputs)(kept) if inputs is None else inputs

    def sequence(
        self,
        request: Request,
        *,
        draws: Draws | None,
        piece: int | None = None,
        reuse: Reuse | None = None,
        follows: tuple[int, ...] = (),
        media: Callable[[Keeper | None], Keeper] | None = None,
    ) -> Sequence:
        """Its sequence, to be taken to its end by a :class:`~coterie.generation.steps.Steps`.

        Args:
            request: As whom its passes are known.
            draws: Its random numbers, from its seed.
            piece: Tokens of the prompt in one pass.
            reuse: Where it finds what was computed of its beginning, and what a piece is.
            follows: Tokens that it is known to begin with.
            media: Given who keeps what is computed of the prompt, says who does, and is shown what goes into layers.
        """
        options = _generating(
            self._model, self._tokenizer, self._inputs, self.config, self.sampling, keep=self._marks
        )  # fmt: skip
        if media is not None:
            options["output_hidden_states"] = True
        inputs = self._inputs.to(self._model.dtype)
        if piece is None and reuse is None:
            prepared = prepare(self._writer, **inputs, **options)
        else:
            prepared = prepare_in_pieces(self._writer, inputs, **options)
        # Where nothing is to come, the token that follows the prompt is not looked at.
        stream = None if self.sampling.max_new_tokens == 0 else self.stream
        hearing = self._logprobs.of(prepared)
        keeper = None
        if reuse is not None:
            piece = reuse.piece
            # Whoever wants to know how likely the prompt's tokens are has all of them computed.
            keeper = self._keeper = reuse.begin(prepared) if hearing is None else None
        if media is not None:
            keeper = media(keeper)
            keep_states_of((accepted_layer(self._model),), prepared.kwargs)
        sequence = self.made = Sequence(
            prepared,
            request=request,
            stream=stream,
            draws=draws,
            prompt_logits=hearing,
            piece=piece,
            keeper=keeper,
            follows=follows,
        )
        return sequence

    def whole_options(self) -> dict[str, Any]:
        """Options by which transformers' ``generate`` of a whole omni model has its thinker write this."""
        prompt = _prompt_tokens(self._model, self._inputs)
        return {
            "generation_config": self.config,
            "max_new_tokens": self.config.max_new_tokens,
            "eos_token_id": self.config.eos_token_id,
            "streamer": self.stream,
            **wished(self._model, self._tokenizer, self.config, self.sampling, prompt=prompt),
        }

    def search(self, draws: Draws | None) -> None:
        """Has transformers generate in a way of its own, such as a search over several beams, which is one call."""
        model, tokenizer, config, stream = self._model, self._tokenizer, self.config, self.stream
        self._logprobs.refuse(model)
        options = {
            **self._inputs.to(model.dtype),
            **_generating(model, tokenizer, self._inputs, config, self.sampling, keep=self._marks, in_steps=False),
        }
        if config.token_healing or config.stop_strings is not None:
            options["tokenizer"] = tokenizer
        if beams(config) == 1:
            options["streamer"] = stream
        if draws is not None:
            draws.begin()
        made = self._writer.generate(**options)
        if beams(config) > 1:
            # Which of the beams is the answer is known now.
            sequence, prompt = getattr(made, "sequences", made)[0].cpu(), _prompt_tokens(model, self._inputs)
            stream.put(sequence[:prompt])
            stream.put(sequence[prompt:])

    def end(self, *, interrupted: bool = False) -> Completion:
        """What has come out of it, once it has ended.

        Args:
            interrupted: Whether that was its caller's doing.
        """
        done = finish(self.stream, self._inputs, self.config, self.sampling, start=self._start, interrupted=interrupted)
        # It has the cache.
        keeper, self._keeper = self._keeper, None
        kept = 0 if keeper is None else keeper.kept
        reused = 0 if self.made is None else self.made.reused
        done = replace(done, reused_tokens=reused, kept_tokens=kept, **self._logprobs.told(self.stream.handed))
        reader = self._reader
        if reader is None:
            return done
        reader.end()
        return replace(done, text=reader.text, reasoning=reader.reasoning, tool_calls=tuple(reader.calls))


def most_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: BatchFeature, sampling: Sampling
) -> int:
    """Tokens whose keys and values a completion can come to need, those of all its beams."""
    config = effective_config(model, tokenizer, inputs, sampling)
    # The last token is never run through the model.
    length = int(inputs["input_ids"].shape[1]) + config.max_new_tokens - 1
    return int(length * sequences_at_once(config))


def _stream(
    tokenizer: PreTrainedTokenizerBase,
    on_text: Callable[[str], None] | None,
    sampling: Sampling,
    reader: AnswerReader | None,
    logprobs: NewLogprobs | None = None,
) -> TextStream:
    """The streamer, which the reader stands behind if there is one."""
    if reader is None:
        return TextStream(tokenizer, on_text, stops=sampling.stop, logprobs=logprobs)
    reader.on_text = on_text
    return TextStream(tokenizer, reader.feed, keep=reader.marks, stops=sampling.stop, logprobs=logprobs)


def _prompt_tokens(model: PreTrainedModel, inputs: BatchFeature) -> int:
    """Tokens before what is generated: the prompt's; of a model with an encoder, the one its decoder begins with."""
    return 1 if model.config.is_encoder_decoder else int(inputs["input_ids"].shape[1])


def _generating(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: BatchFeature,
    config: GenerationConfig,
    sampling: Sampling,
    *,
    keep: tuple[str, ...] = (),
    in_steps: bool = True,
) -> dict[str, Any]:
    """Options of ``generate`` for one prompt beside itself, the texts that end it included."""
    prompt = _prompt_tokens(model, inputs)
    return {
        "generation_config": config,
        **wished(model, tokenizer, config, sampling, prompt=prompt, keep=keep, in_steps=in_steps),
    }


def wished(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: GenerationConfig,
    sampling: Sampling,
    *,
    prompt: int,
    keep: tuple[str, ...] = (),
    in_steps: bool = True,
) -> dict[str, Any]:
    """What ``generate`` needs beside its settings: to end at a text, the caller's or the model's own; to shape scores.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        config: What is to be done.
        sampling: The caller's wishes.
        prompt: Tokens of the prompt.
        keep: Special tokens whose text is part of the answer, as :class:`TextStream` takes them: where the stream sees
            a text, and only there, the sequence ends.
        in_steps: Whether it is not told of the tokenizer, so that the model's own texts have to be given otherwise.
    """
    from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria

    options: dict[str, Any] = {}
    criteria = StoppingCriteriaList()
    if in_steps and config.stop_strings is not None:
        criteria.append(StopStringCriteria(tokenizer, config.stop_strings))
        # Said beside the config: of what a config says None, the model's own is taken.
        options["stop_strings"] = None
    if sampling.stop:
        criteria.append(StopAtTexts(tokenizer, sampling.stop, keep=keep, prompt=prompt))
    if criteria:
        options["stopping_criteria"] = criteria
    if config.eos_token_id is None:
        options["eos_token_id"] = None  # said beside the config, as above
    if shapers := shaping(model, tokenizer, config, sampling, prompt=prompt, in_steps=in_steps):
        options["logits_processor"] = LogitsProcessorList(shapers)
    return options


def effective_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: BatchFeature, sampling: Sampling
) -> GenerationConfig:
    """The generation config for one prompt: with an end token, and no longer than the memory budget allows."""
    config = sampling.generation_config(model.generation_config)
    if config.eos_token_id is None:
        # Some released configs leave the end of a turn to the tokenizer.
        config.eos_token_id = tokenizer.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    check_tokens(model, sampling)
    config.eos_token_id = sampling.ends(end_tokens(config))
    room = _room(model, config, int(inputs["input_ids"].shape[1]))
    wanted = sampling.max_new_tokens
    if wanted is None:
        wanted = DEFAULT_CONTEXT if room is None else room
    config.max_new_tokens = max(1, wanted if room is None else min(wanted, room))
    return config


def _room(model: PreTrainedModel, config: GenerationConfig, prompt: int) -> int | None:
    """New tokens that there is room for; None if nothing says so."""
    if model.coterie.max_context is None and config.max_new_tokens is not None:
        return None  # whoever asks for more than the model was made for gets it
    most = longest(model, config)
    # The last token is never run through the model, hence one more; a prompt that is too long fails in the model.
    return None if most is None else most - prompt + 1


def finish(
    stream: TextStream,
    inputs: BatchFeature,
    config: GenerationConfig,
    sampling: Sampling,
    *,
    start: float,
    interrupted: bool,
) -> Completion:
    """Closes the stream and says what came out of it."""
    end = time.perf_counter()
    stream.end()
    first = end if stream.first_at is None else stream.first_at
    last = first if stream.last_at is None else stream.last_at
    return Completion(
        prompt_tokens=int(inputs["input_ids"].shape[1]),
        token_ids=tuple(stream.token_ids),
        text=stream.text,
        finish_reason="interrupted" if interrupted else _reason(stream, config, sampling, end - start),
        prefill_s=first - start,
        decode_s=last - first,
    )


def _reason(stream: TextStream, config: GenerationConfig, sampling: Sampling, seconds: float) -> FinishReason:
    """Why it ended, when nobody stopped it."""
    if stream.stopped or (stream.token_ids and stream.token_ids[-1] in end_tokens(config)):
        return "stop"
    if sampling.max_new_tokens is not None and len(stream.token_ids) >= sampling.max_new_tokens:
        return "length"
    if len(stream.token_ids) >= (config.max_new_tokens or 0):
        return "context"
    # Nothing else ends a sequence before its length.
    return "time" if config.max_time is not None and seconds >= config.max_time else "stop"


def end_tokens(config: GenerationConfig) -> tuple[int, ...]:
    """The tokens that end an answer."""
    value = config.eos_token_id
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)

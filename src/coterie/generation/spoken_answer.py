"""An answer in text and sound, as whoever takes it from step to step works on it: one caller, or an engine of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from coterie.errors import CoterieError, InputError, SpeechError, UnsupportedError
from coterie.generation.completion import Completing, Completion, Reuse, end_tokens
from coterie.generation.draws import Draws, drawn_from
from coterie.generation.frames import Frames, Samples
from coterie.generation.kept_cache import KeptCache
from coterie.generation.media_rows import MediaRows, all_heard
from coterie.generation.one_sequence import check_settings
from coterie.generation.sampling import Sampling
from coterie.generation.sequence import Keeper
from coterie.generation.sequence import Sequence as Tokens
from coterie.generation.speech import Speech, Voice, speaker_of
from coterie.generation.steps import Steps
from coterie.generation.talking import Talking
from coterie.hf.talker import already_written, media_mask, tokens_to_begin
from coterie.passes.current import Request, Stated

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel


def check_spoken(model: PreTrainedModel, sampling: Sampling, voice: Voice) -> None:
    """Refuses what no answer in speech can be.

    Raises:
        UnsupportedError: If the model does not speak, or log probabilities are wanted.
        UsageError: If it has no such voice.
    """
    speaker_of(model, voice)
    if sampling.logprobs is not None or sampling.prompt_logprobs is not None:
        raise UnsupportedError("Answers in speech tell no log probabilities.", advice="Leave them out.",
                               field="logprobs")  # fmt: skip


class SpokenAnswer:
    """The sequences of an answer: the thinker's, and the talker's once it can begin.

    Args:
        model: A whole omni model.
        inputs: The prompt.
        completing: The text.
        voice: How it is spoken.
        request: As whom its passes are known.
        draws: Random numbers of the text, from its seed; None without one.
        on_sound: Told the samples of each chunk; None for sound that is decoded at the end.

    Attributes:
        text: The thinker's sequence, once it has begun; None also where transformers writes the text in a way of its
            own.
        talking: The talker's part.
        written: Whether the text has come to its end.

    Raises:
        UnsupportedError: If the generation config asks for what one sequence cannot do.
        InputError: If the prompt has no turn of the assistant.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: BatchFeature,
        completing: Completing,
        voice: Voice,
        request: Request,
        *,
        draws: Draws | None,
        on_sound: Callable[[Samples], None] | None,
    ) -> None:
        config = completing.config
        check_settings(model, config, streamed=True)
        self._model = model
        self._inputs = inputs
        self._completing = completing
        self._request = request
        self._draws = draws
        self._ends = end_tokens(config)
        first = tokens_to_begin(model, inputs["input_ids"])
        if first is None:
            raise InputError(
                "The prompt has no turn of the assistant, by which a talker knows what it is to say.",
                advice="Pass messages, or inputs that chat_inputs made with the model's chat template.",
            )
        # In transformers the talker goes on with the random numbers that the text has left.
        drawn_twice = draws is not None and bool(config.do_sample) and not voice.greedy and voice.seed is None
        self.talking = Talking(
            model,
            speaker=speaker_of(model, voice),
            greedy=voice.greedy,
            most_frames=voice.most_frames(model.code2wav),
            request=request,
            frames=Frames(model.code2wav, on_sound),
            draws=draws if voice.seed is None else Draws(voice.seed),
            waits=on_sound is None or drawn_twice,
            first=first,
        )
        self.text: Tokens | None = None
        self.written = False

    @property
    def sequences(self) -> tuple[Tokens, ...]:
        """Those that there are by now."""
        return tuple(one for one in (self.text, self.talking.sequence) if one is not None)

    @property
    def over(self) -> bool:
        """Whether text and sound have come to their ends."""
        return self.written and self.talking.over

    def begin(self, reuse: Reuse | None) -> Tokens:
        """Makes the sequence of the text.

        Args:
            reuse: Where what was computed of the prompt's beginning is found. Only passes over pictures and sounds tell
                what the talker reads of them: a conversation keeps it, and without one all is computed.
        """
        shown = bool(media_mask(self._model, self._inputs["input_ids"]).any())
        conversation = reuse if isinstance(reuse, KeptCache) else None
        if shown and conversation is not None and not all_heard(self._model, conversation):
            conversation.drop()

        def watch(keeper: Keeper | None) -> Keeper:
            self.talking.media = MediaRows(self._model, self._inputs["input_ids"], keeper, conversation)
            return self.talking.media

        with Stated(self._request):
            self.text = self._completing.sequence(
                self._request,
                draws=self._draws,
                piece=None if reuse is None else reuse.piece,
                reuse=conversation if shown else reuse,
                media=watch if shown else None,
            )
        return self.text

    def begin_elsewhere(self, steps: Steps) -> None:
        """Has transformers write the text in a way of its own, which is one call.

        Args:
            steps: Where the talker's sequence takes part afterwards.
        """
        self._speak_of(self._completing.whole_options(), steps)

    def begin_said(self, said: Sequence[int], steps: Steps) -> None:
        """Begins with a text that is given: the thinker writes nothing, and the talker takes part from now on.

        The prompt has no pictures or sounds: of those the talker reads what the thinker makes of them.

        Args:
            said: The tokens of the text, without an end token; at least one.
            steps: Where the talker's sequence takes part.
        """
        prompt = self._inputs["input_ids"]
        tokens = torch.tensor(said, dtype=prompt.dtype)
        stream = self._completing.stream
        stream.put(prompt)
        for token in tokens:
            stream.put(token[None])
        self._speak_of(already_written(self._model, torch.cat([prompt, tokens[None]], dim=1), None), steps)

    def follow(self, steps: Steps) -> None:
        """Sees to both after a step: the talker begins, reads what is written, ends.

        Raises:
            Stopped: If either was told to end.
            BaseException: What ended the text before its time, or the sound if that is no
                :class:`~coterie.errors.CoterieError`: with one of those, the text goes on.
        """
        text, talking = self.text, self.talking
        if text is None:
            talking.look()
        else:
            talking.follow(text, self._ends, self._prompt, steps)
            text.check()
            self.written = text.ended
        if talking.error is not None and not isinstance(talking.error, CoterieError):
            raise talking.error

    def fall_silent(self, error: CoterieError, steps: Steps) -> None:
        """The sound ends with an error, and the text goes on."""
        if self.talking.sequence is not None:
            steps.remove(self.talking.sequence)
        self.talking.fail(error)

    def leave(self, steps: Steps) -> None:
        """Takes part no more; harmless if it has ended."""
        for sequence in self.sequences:
            steps.remove(sequence)

    def speech(self, completion: Completion) -> Speech:
        """What has come of it.

        Args:
            completion: Of the text.
        """
        talking = self.talking
        samples = talking.frames.end()
        first, began = talking.frames.first_at, self._completing.stream.first_at
        return Speech(
            completion=completion,
            samples=samples,
            finish_reason=talking.reason if len(samples) or talking.reason == "interrupted" else "none",
            frames=talking.frames.count,
            seconds=talking.seconds,
            first_s=None if first is None or began is None else first - began,
        )

    def _speak_of(self, thinker: Mapping[str, Any], steps: Steps) -> None:
        """Has the talker begin with a text that is whole, which the thinker writes by these options."""
        with Stated(self._request), drawn_from(self._draws):
            self.talking.begin_elsewhere(thinker, self._prompt(), steps)
        self.written = True

    def _prompt(self) -> Mapping[str, Any]:
        made: Mapping[str, Any] = self._inputs.to(self._model.dtype)
        return made


def speech_error(error: CoterieError, speech: Speech) -> SpeechError:
    """What to say of an answer whose sound has not come to its end.

    Args:
        error: Why.
        speech: What there is of it.
    """
    made = SpeechError(f"The answer could not be spoken to its end: {error}", advice=error.advice, speech=speech)
    made.__cause__ = error
    return made

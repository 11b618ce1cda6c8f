"""An answer in speech while it is made: pieces of text and chunks of sound, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from coterie.errors import CoterieError, InputError
from coterie.generation.answers import AnswerReader
from coterie.generation.chat import can_chat, chat_inputs, user_message
from coterie.generation.completion import Completing, Completion, Reuse
from coterie.generation.draws import Draws
from coterie.generation.frames import Samples
from coterie.generation.interruption import stopping_when
from coterie.generation.one_sequence import files_named
from coterie.generation.opened import OpenModel
from coterie.generation.sampling import Sampling
from coterie.generation.speech import SPEECH_RATE, Speech, Voice
from coterie.generation.spoken_answer import SpokenAnswer, check_spoken, speech_error
from coterie.generation.steps import Steps
from coterie.generation.tickets import Part, Piece, SoundChunk
from coterie.passes.current import Request, Stopped

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase


def speak(
    model: PreTrainedModel | OpenModel,
    asked: str | Sequence[Mapping[str, Any]] | Mapping[str, Any],
    sampling: Sampling | None = None,
    *,
    voice: Voice | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Speaking:
    """Has a model answer in text and speech; the sound comes while the text goes on.

    Example::

        with coterie.load("Qwen/Qwen3-Omni-30B-A3B-Instruct", memory="8GiB") as model:
            for piece in coterie.speak(model, "Tell me a story."):
                if isinstance(piece, coterie.SoundChunk):
                    loudspeaker.write(piece.samples)  # float32, piece.rate samples per second
                else:
                    print(piece.text, end="", flush=True)

    For a turn of a conversation see :meth:`coterie.Conversation.speak`.

    Args:
        model: A whole omni model from :func:`coterie.load`.
        asked: What the user says; or messages of a conversation, as :func:`coterie.chat_inputs` takes them; or the
            inputs that it returns, pictures and sounds included.
        sampling: How the text's tokens are chosen. The sound is drawn as ``voice`` says. With a seed both are
            repeatable; where both are drawn, the talker goes on with the random numbers that the text has left, as in
            transformers, and the sound comes after the text. A seed of the voice's own makes it come meanwhile.
        voice: How it is spoken.
        should_stop: Asked before every layer; True ends the answer, and keeps what is there.

    Returns:
        An iterator, which computes what it gives when it is asked for it. What ends the answer before its time is
        raised there.

    Raises:
        UnsupportedError: If the model has no talker, or its settings ask for what one sequence cannot do.
        UsageError: If it has no such voice.
        InputError: If it has no chat template, by which a talker knows whose turn it is; or a file cannot be used.
        CoterieError: As :func:`coterie.load` and computing the answer raise it.
    """
    opened = model if isinstance(model, OpenModel) else OpenModel.of(model)
    check_spoken(opened.model, sampling or Sampling(), voice or Voice())
    return Speaking(
        opened.model,
        opened.processors.tokenizer,
        _inputs(opened, asked),
        sampling,
        voice=voice,
        should_stop=should_stop,
    )


def _inputs(opened: OpenModel, asked: str | Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> BatchFeature:
    if isinstance(asked, Mapping):
        from transformers import BatchFeature

        return BatchFeature(dict(asked))
    if not can_chat(opened.processors):
        raise no_template(opened.model)
    return chat_inputs(opened.processors, [user_message(asked)] if isinstance(asked, str) else asked)


def no_template(model: PreTrainedModel) -> InputError:
    """What to say of a model whose talker cannot know whose turn it is."""
    return InputError(
        f"{model.coterie.source.name} has no chat template, and its talker needs one to know whose turn it is.",
        advice="Make inputs with a template (chat_inputs), or pass one to the conversation (ChatOptions).",
    )


class Speaking:
    """An answer on its way, in text and sound. Made by :func:`coterie.speak` and :meth:`coterie.Conversation.speak`.

    Iterating over it gives its pieces: a ``Piece`` with a ``text``, or a :class:`coterie.SoundChunk` with ``samples``.
    A token of the text and a frame of the sound (0.08 seconds) are computed in turn; of the sound, 0.6 seconds come
    first, then 2 at a time. Leaving it as a context ends it, and keeps what is there.

    Args:
        model: A whole omni model.
        tokenizer: Its tokenizer.
        inputs: From :func:`coterie.chat_inputs`: the talker needs to see whose turn is whose.
        sampling: How the text's tokens are chosen.
        voice: How it is spoken.
        streamed: Whether sound comes while it is made. Else all of it is decoded at the end as transformers does, to
            the bit; beyond 24 seconds that leaves out some samples (23 ms) every 24 seconds, and takes more memory.
        reader: Tells the parts of the text apart.
        reuse: Where what was computed of the prompt's beginning is found.
        should_stop: Asked before every layer; True ends it, and keeps what is there.
        on_end: Given the text when all of the answer has ended, or is given up.
        said: Tokens of the text, where it is given and only to be spoken, after a prompt without pictures and sounds.

    Attributes:
        rate: Samples of the sound per second.

    Raises:
        UnsupportedError: If the model has no talker, or the generation config asks for what one sequence cannot do.
        UsageError: If it has no such voice.
        InputError: If the prompt has no turn of the assistant.
    """

    rate = SPEECH_RATE

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        inputs: BatchFeature,
        sampling: Sampling | None = None,
        *,
        voice: Voice | None = None,
        streamed: bool = True,
        reader: AnswerReader | None = None,
        reuse: Reuse | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_end: Callable[[Completing, Completion], None] | None = None,
        said: Sequence[int] | None = None,
    ) -> None:
        how, wishes = voice or Voice(), sampling or Sampling()
        check_spoken(model, wishes, how)
        self._model = model
        self._reuse = reuse
        self._on_end = on_end
        self._said = said
        self._pieces: deque[Piece | SoundChunk] = deque()
        if reader is not None:
            reader.on_reasoning = self._teller("reasoning")
        self._completing = Completing(
            model, tokenizer, inputs, wishes, on_text=self._teller("text"), reader=reader, speech=True
        )
        self._steps = Steps()
        self._stop = False
        self._open = ExitStack()
        request = Request()
        request.before_layer = stopping_when(lambda: self._stop or (should_stop is not None and should_stop()))
        self._answer = SpokenAnswer(
            model,
            inputs,
            self._completing,
            how,
            request,
            draws=None if wishes.seed is None else Draws(wishes.seed),
            on_sound=self._hear if streamed else None,
        )
        self._begun = False
        self._speech: Speech | None = None
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Piece | SoundChunk]:
        return self

    def __next__(self) -> Piece | SoundChunk:
        while not self._pieces:
            if self._speech is not None:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopIteration
            self._step()
        return self._pieces.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def result(self) -> Speech:
        """The whole answer, once it has ended; what was not given of it yet is not given any more.

        Raises:
            SpeechError: If the sound could not be made to its end. What there is of the answer is its ``speech``.
            CoterieError: What else ended it before its time.
        """
        for _ in self:
            pass
        assert self._speech is not None
        return self._speech

    def tell(
        self,
        *,
        on_text: Callable[[str], None] | None = None,
        on_reasoning: Callable[[str], None] | None = None,
        on_sound: Callable[[Samples], None] | None = None,
    ) -> Speech:
        """Takes it to its end, and tells its pieces meanwhile.

        Args:
            on_text: Told the text.
            on_reasoning: Told what the model thinks before.
            on_sound: Told the samples of the sound. If it raises a :class:`~coterie.errors.CoterieError`, the sound has
                ended with that, and the text goes on.

        Raises:
            CoterieError: As :meth:`result`.
        """
        told = {"text": on_text, "reasoning": on_reasoning}
        with self:
            for piece in self:
                if isinstance(piece, Piece):
                    if (on_piece := told[piece.part]) is not None:
                        on_piece(piece.text)
                elif on_sound is not None and self._answer.talking.error is None:
                    try:
                        on_sound(piece.samples)
                    except CoterieError as error:
                        self._answer.fall_silent(error, self._steps)
            return self.result()

    def stop(self) -> None:
        """Ends it before the next layer is computed; in whatever thread. What is there is kept, and still given."""
        self._stop = True

    def close(self) -> None:
        """Ends it at once, between two of its pieces; what was not given yet is not given any more. Harmless after it.

        The speech that there is by then is its :meth:`result`.
        """
        if self._speech is None:
            self._end(interrupted=True)
        self._pieces.clear()

    def _step(self) -> None:
        """A forward pass, and what follows from it."""
        try:
            with files_named(self._model):
                if not self._begun:
                    self._begun = True
                    self._begin()
                elif self._stop:
                    raise Stopped
                else:
                    self._steps.step()
                self._answer.follow(self._steps)
        except Stopped:
            self._end(interrupted=True)
        except CoterieError as error:
            self._end(error)
        except BaseException:
            self._end(interrupted=True)
            raise
        else:
            if self._answer.over:
                failed = self._answer.talking.error
                self._end(failed if isinstance(failed, CoterieError) else None)

    def _begin(self) -> None:
        """Makes the sequence of the text, which takes part from now on."""
        # What speaks stays in memory between its passes and those of the text.
        self._open.enter_context(self._model.coterie.speaking())
        if self._said is not None:
            self._answer.begin_said(self._said, self._steps)
        elif self._completing.in_steps:
            self._steps.add(self._answer.begin(self._reuse))
        else:
            self._answer.begin_elsewhere(self._steps)

    def _end(self, error: CoterieError | None = None, *, interrupted: bool = False) -> None:
        """All has ended, whatever ended it."""
        answer = self._answer
        answer.leave(self._steps)
        if interrupted:
            answer.talking.stop()
        try:
            completion = self._completing.end(interrupted=interrupted and not answer.written)
            self._speech = speech = answer.speech(completion)
        finally:
            self._open.close()
        if error is not None:
            self._error = speech_error(error, speech) if answer.talking.begun else error
        if self._on_end is not None:
            self._on_end(self._completing, completion)

    def _hear(self, samples: Samples) -> None:
        self._pieces.append(SoundChunk(samples, SPEECH_RATE))

    def _teller(self, part: Part) -> Callable[[str], None]:
        def tell(text: str) -> None:
            self._pieces.append(Piece(part, text))

        return tell

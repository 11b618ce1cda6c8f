"""A conversation with a model: remembers the turns, streams the answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import InputError, UsageError
from coterie.files.json_text import read_json_object
from coterie.files.replacing import replacing
from coterie.generation.answer_form import answer_form
from coterie.generation.chat import ChatPrompt, can_chat, chat_prompt, check_options, user_message
from coterie.generation.chat_options import ChatOptions
from coterie.generation.completion import Completing, Completion, Reuse
from coterie.generation.cut_answer import CUT, CutAnswer
from coterie.generation.kept_cache import KeptCache
from coterie.generation.one_sequence import longest
from coterie.generation.parsed_answers import reading
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling
from coterie.generation.speaking import Speaking, no_template
from coterie.generation.speech import Voice
from coterie.generation.toolbox import Toolbox
from coterie.generation.video_options import VideoOptions

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel

    from coterie.generation.answers import AnswerReader

_ROOM_SHARE = 4
"""One part in so many of the longest prompt is free after the oldest turns were forgotten."""
_LEAST_SHARE = 4
"""One part in so many of the context is kept for the answer, or as much of it as the answer may take."""


class Conversation:
    """The turns between a user and a model.

    Every answer is generated from the whole conversation. What was computed of it for the last answer is kept, so that
    a turn computes no more than what is new: the turn itself, and what the template shows in another way than it was
    generated. Where the model has no chat template, the turns so far, one per line, are the text that it continues.
    What a model thought before it answered, and the marks around it, are told apart from the answer and kept as its
    template expects them.

    Args:
        model: From :func:`coterie.load`.
        processors: Of its directory.
        sampling: How tokens are chosen. With a seed, turn n uses seed + n.
        system: A system message, kept over :meth:`reset`.
        options: Another template than the model's, and what it is told.
        reuse: What an answer begins with: ``True`` for what the last answer was computed with, ``False`` for nothing
            (every answer is computed anew, from the first token on), or :class:`~coterie.generation.prefixes.Prefixes`.
            With the first, an answer is the same whenever the same conversation takes the same course, whoever else is
            served. It may differ in rounding from what the same messages come to in a prompt of their own. With the
            others it does not.
        video_options: Which frames of videos are shown, how large, and whether their sound is heard.

    Attributes:
        templated: Whether the model has a chat template.
        sampling: How tokens are chosen.
        messages: The turns so far, as :func:`~coterie.generation.chat.chat_inputs` takes them.
        forgotten: Messages that the last answer could not take into account, because the context was full.

    Raises:
        InputError: If the template that was asked for cannot be read.
        LoadError: If the model's cannot.
        UsageError: If the template is told what it does not read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processors: Processors,
        *,
        sampling: Sampling | None = None,
        system: str | None = None,
        options: ChatOptions | None = None,
        reuse: bool | Reuse = True,
        video_options: VideoOptions | None = None,
    ) -> None:
        self._model = model
        self._processors = processors
        self._options = ChatOptions()
        self._video_options = video_options or VideoOptions()
        self._reuse: Reuse | None = (KeptCache() if reuse else None) if isinstance(reuse, bool) else reuse
        self._turn = 0
        self._first: list[dict[str, Any]] = _system_message(system)
        self.sampling = sampling or Sampling()
        self.options = options or ChatOptions()
        self.templated = self.options.template is not None or can_chat(processors)
        self.messages = list(self._first)
        self.forgotten = 0
        self._last: _Last | None = None

    @property
    def options(self) -> ChatOptions:
        """Another template than the model's, and what it is told; what has no effect is refused."""
        return self._options

    @options.setter
    def options(self, options: ChatOptions) -> None:
        check_options(self._processors, options)
        self._options = options

    def ask(
        self,
        text: str,
        *,
        images: Sequence[str | Path] = (),
        audios: Sequence[str | Path] = (),
        videos: Sequence[str | Path] = (),
        on_text: Callable[[str], None] | None = None,
        on_reasoning: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Completion:
        """Takes a turn and returns the answer.

        An answer that was stopped is kept as far as it came; a turn that failed, or was stopped before the first
        token, is as if it had not been. When the context is full, the oldest turns are forgotten.

        Args:
            text: What the user says; may be empty if there is a picture, sound or video.
            images: Picture files shown before the text.
            audios: Sound files played before the text.
            videos: Video files shown before the text.
            on_text: As in :func:`~coterie.generation.completion.complete`.
            on_reasoning: Told what the model thinks before it answers, piece by piece.
            should_stop: As in :func:`~coterie.generation.completion.complete`.

        Raises:
            InputError: If a file cannot be used or the template refuses the conversation.
            ContextLengthError: If this turn alone is longer than the memory budget was made for.
        """
        message = user_message(text, images=images, audios=audios, videos=videos)
        return self._answer(message, on_text=on_text, on_reasoning=on_reasoning, should_stop=should_stop)

    def speak(
        self,
        text: str,
        *,
        images: Sequence[str | Path] = (),
        audios: Sequence[str | Path] = (),
        videos: Sequence[str | Path] = (),
        voice: Voice | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Speaking:
        """Takes a turn that is answered in text and speech; the sound comes while the text goes on.

        The turn is kept when the answer has ended or is closed, as :meth:`ask` keeps it; what is kept of the answer is
        its text. Until then nothing else should be asked.

        Args:
            text: What the user says; may be empty if there is a picture or sound.
            images: Picture files shown before the text.
            audios: Sound files played before the text.
            videos: Video files shown before the text.
            voice: How it is spoken.
            should_stop: As in :func:`coterie.speak`.

        Returns:
            The answer on its way, as :func:`coterie.speak` returns it.

        Raises:
            UnsupportedError: If the model has no talker.
            UsageError: If it has no such voice.
            InputError: If there is no chat template, or as :meth:`ask`.
            ContextLengthError: As :meth:`ask`.
        """
        if not self.templated:
            raise no_template(self._model)
        asked, prompt, inputs = self._prepare(user_message(text, images=images, audios=audios, videos=videos))

        def keep(completing: Completing, answer: Completion) -> None:
            if answer.token_ids:
                self._keep(asked, answer, _Last(CutAnswer(self._model, completing, answer), prompt))
                self._turn += 1

        reader = self._reader(prompt)
        return Speaking(
            self._model,
            self._processors.tokenizer,
            inputs,
            self._wishes(reader),
            voice=voice,
            reader=reader,
            reuse=self._reuse,
            should_stop=should_stop,
            on_end=keep,
        )

    def retry(
        self,
        *,
        on_text: Callable[[str], None] | None = None,
        on_reasoning: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Completion:
        """Has the last turn answered once more, in place of the answer that it had.

        Raises:
            UsageError: If there was none.
            CoterieError: As :meth:`ask`; the answer that there was is kept then.
        """
        before = self.messages
        asked = self._without_last()
        if asked is None:
            raise UsageError("Nothing was asked yet that could be asked again.")
        message = before[len(asked)]
        self.messages = asked
        answer = None
        try:
            answer = self._answer(message, on_text=on_text, on_reasoning=on_reasoning, should_stop=should_stop)
        finally:
            if answer is None or not answer.token_ids:
                self.messages = before
        return answer

    def go_on(
        self,
        *,
        on_text: Callable[[str], None] | None = None,
        on_reasoning: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Completion:
        """Has the last answer go on that was cut, by ``max_new_tokens`` or by the caller; returns all of it.

        It becomes what it would have been if it had not been cut, token for token. It takes up to ``max_new_tokens``
        more tokens, and is sampled as it began. What is told is what comes now.

        Raises:
            UsageError: If the last answer was not cut, was loaded from a file, or the context is full.
            UnsupportedError: If it was found by a search over several sequences.
            CoterieError: As :meth:`ask`; the answer is as it was then.
        """
        last = self._last
        if last is None or not self.messages or self.messages[-1] is not last.message:
            raise UsageError("There is no answer that could go on.", advice="Ask something first.")
        if last.answer.completion.finish_reason not in CUT:
            raise UsageError("The last answer has come to its end.")
        answer = last.answer.go_on(
            self.sampling.max_new_tokens,
            self._reader(last.prompt),
            lambda: self._inputs(last.prompt),
            reuse=self._reuse,
            on_text=on_text,
            on_reasoning=on_reasoning,
            should_stop=should_stop,
        )
        self._keep(self.messages[:-1], answer, last)
        return answer

    def undo(self) -> bool:
        """Forgets the last turn; returns whether there was one."""
        left = self._without_last()
        if left is None:
            return False
        self.messages = left
        return True

    def reset(self) -> None:
        """Forgets all turns but the system message."""
        self.messages = list(self._first)
        self._turn = 0

    def instruct(self, system: str | None) -> None:
        """Changes the system message, from the next answer on; None or an empty text removes it."""
        turns = self.messages[len(self._first) :]
        self._first = _system_message(system)
        self.messages = [*self._first, *turns]

    def save(self, path: str | Path) -> None:
        """Writes the turns to a JSON file, whole or not at all."""
        text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=2) + "\n"
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")

    def restore(self, path: str | Path) -> None:
        """Goes on with turns that were saved; those so far are forgotten.

        Raises:
            InputError: If the file cannot be read or holds no conversation.
        """
        file = Path(path)
        try:
            messages = read_json_object(file, error=InputError, advice="Is it one that was saved?").get("messages")
        except FileNotFoundError as error:
            raise InputError(f"There is no file {file}.", path=file) from error
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            raise InputError(f"{file} holds no conversation.", advice="Is it one that was saved?", path=file)
        self._first = [message for message in messages[:1] if message["role"] == "system"]
        self.messages = messages

    def _answer(
        self,
        message: dict[str, Any],
        *,
        on_text: Callable[[str], None] | None,
        on_reasoning: Callable[[str], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> Completion:
        asked, prompt, inputs = self._prepare(message)
        reader = self._reader(prompt)
        reader.on_reasoning = on_reasoning
        completing = Completing(
            self._model, self._processors.tokenizer, inputs, self._wishes(reader), on_text=on_text, reader=reader
        )  # fmt: skip
        answer = completing.run(should_stop, reuse=self._reuse)
        if answer.token_ids:
            self._keep(asked, answer, _Last(CutAnswer(self._model, completing, answer), prompt))
            self._turn += 1
        return answer

    def _wishes(self, reader: AnswerReader) -> Sampling:
        """How the tokens of the next answer are chosen."""
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = dataclasses.replace(sampling, seed=(sampling.seed + self._turn) % 2**63)
        if sampling.grammar is not None:
            form = answer_form(self._processors.tokenizer, None, reader, Toolbox(), sampling.grammar)
            sampling = dataclasses.replace(sampling, grammar=form)
        return sampling

    def _keep(self, asked: list[dict[str, Any]], answer: Completion, last: _Last) -> None:
        """Remembers an answer as the last turn."""
        last.message = _as_message(answer)
        self.messages, self._last = [*asked, last.message], last

    def _reader(self, prompt: ChatPrompt) -> AnswerReader:
        """What reads an answer to a prompt."""
        formed = self.sampling.grammar is not None
        return reading(self._processors.tokenizer, prompt.template, prompt.text, Toolbox(), formed=formed)[0]

    def _prepare(self, message: dict[str, Any]) -> tuple[list[dict[str, Any]], ChatPrompt, BatchFeature]:
        """The messages that fit, and the prompt and the inputs of the next turn."""
        turns = self.messages[len(self._first) :]
        limit = goal = self._limit()
        while True:
            asked = [*self._first, *turns, message]
            prompt = chat_prompt(self._processors, asked, self._options, video_options=self._video_options)
            inputs = self._inputs(prompt)
            length = int(inputs["input_ids"].shape[1])
            if limit is None or goal is None or length <= goal or not turns:
                break
            if self._reuse is not None:
                # More than has to go: until the context is full again, turns can go on with what is kept.
                goal = limit - limit // _ROOM_SHARE
            # Another round costs a rendering, and what is left out for nothing is lost: half as many messages as the
            # length suggests go at once, a turn at least.
            excess = max(1, len(turns) * (length - limit) // (2 * length))
            turns = _without_first(turns, excess)
        self.forgotten = len(self.messages) + 1 - len(asked)
        return asked, prompt, inputs

    def _inputs(self, prompt: ChatPrompt) -> BatchFeature:
        """The model's inputs; pictures and sounds have the room of what is kept, if they need it."""
        try:
            return prompt.inputs(self._processors)
        except InputError as error:
            if not isinstance(self._reuse, KeptCache) or not self._reuse.tokens or not hasattr(error, "room"):
                raise
            self._reuse.drop()
        return prompt.inputs(self._processors)

    def _limit(self) -> int | None:
        """The longest prompt that leaves room for an answer; None if nothing limits it."""
        context = longest(self._model, self.sampling.generation_config(self._model.generation_config))
        if context is None:
            return None
        share = context // _LEAST_SHARE
        wanted = self.sampling.max_new_tokens
        return context - (share if wanted is None else min(share, wanted))

    def _without_last(self) -> list[dict[str, Any]] | None:
        """The messages before the user's last one; None if there is none."""
        users = [number for number, message in enumerate(self.messages) if message["role"] == "user"]
        return self.messages[: users[-1]] if users else None


@dataclasses.dataclass(slots=True)
class _Last:
    """The last answer, what it answers, and the turn that it is."""

    answer: CutAnswer
    prompt: ChatPrompt
    message: dict[str, Any] = dataclasses.field(default_factory=dict)


def _without_first(turns: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Turns without the first ``count`` messages, and on to the next that is the user's."""
    begins = (number for number in range(count, len(turns)) if turns[number]["role"] == "user")
    return turns[next(begins, len(turns)) :]


def _system_message(text: str | None) -> list[dict[str, Any]]:
    return [{"role": "system", "content": text}] if text else []


def _as_message(answer: Completion) -> dict[str, Any]:
    """An answer as a turn, in the form that templates know."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        # Which of the two names a template reads differs; transformers fills in both.
        message |= {"reasoning_content": answer.reasoning, "thinking": answer.reasoning}
    if answer.tool_calls:
        message["tool_calls"] = [call.as_message() for call in answer.tool_calls]
    return message


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in ("system", "user", "assistant")
        and isinstance(value.get("content"), str | list)
    )

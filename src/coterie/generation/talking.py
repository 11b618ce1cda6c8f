"""The sound of an answer while its text goes on: a talker's sequence, which goes along with the thinker's.

The first pass of the talker reads the prompt and the first token of the text; each further pass reads one more token,
and makes a frame of sound (0.08 seconds) of what came before. So thinker and talker take turns, a token and a frame,
and the first sound is there after two tokens. When the text has come to its end, the talker goes on alone: there are
three or four frames to a token. What each of them computes is what it computes if the text is written first.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from coterie.generation.draws import Draws, drawn_from
from coterie.generation.frames import Frames
from coterie.generation.media_rows import MediaRows
from coterie.generation.one_sequence import longest
from coterie.generation.sequence import Sequence
from coterie.hf.code_predictor import predicting
from coterie.hf.generation_steps import Prepared, one_by_one, prompt_length
from coterie.hf.talker import TextReading, TextRows, already_written, prepare_talker, spoken, text_reading
from coterie.passes.current import Request, Stated, Stopped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from coterie.generation.steps import Steps

SpeechEnd = Literal["stop", "length", "context", "interrupted", "none"]

MOST_FRAMES = 4095
"""Frames that transformers has a talker make at most: 5.5 minutes."""
TALKER_MARKS = 9
"""Tokens that the talker reads between the prompt and the first frame."""
_CHUNK_FRAMES = 300
"""Frames that transformers decodes at once."""


class Talking:
    """The talker's part of an answer.

    Args:
        model: The whole model.
        speaker: Whose voice it is.
        greedy: Whether it takes the likeliest codes.
        most_frames: Frames that it makes at most.
        request: As whom its passes are known.
        frames: Takes what it makes.
        draws: Its random numbers; without them, it draws from the process's.
        first: Tokens of the text that its first pass reads.
        waits: Whether it begins when the text has come to its end, and no sooner; also where it could not be exact
            before.

    Attributes:
        sequence: The talker's sequence, once there is one.
        reason: Why the sound ended; ``none`` as long as it has not.
        over: Whether no more will come.
        error: What ended it before its time.
        media: What it reads of pictures and sounds in the prompt; None where there are none.
        frames: Those given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        speaker: str,
        greedy: bool,
        most_frames: int,
        request: Request,
        frames: Frames,
        draws: Draws | None,
        waits: bool,
        first: int,
    ) -> None:
        self.sequence: TalkerSequence | None = None
        self.reason: SpeechEnd = "none"
        self.over = False
        self.error: BaseException | None = None
        self._seconds = 0.0
        self.media: MediaRows | None = None
        self.frames = frames
        self._model = model
        self._speaker = speaker
        self._options = {"max_new_tokens": most_frames + 1} | ({"do_sample": False} if greedy else {})
        self._greedy = greedy
        self._most = most_frames
        self._request = request
        self._draws = draws
        self._waits = waits
        self._first = first
        self._room: int | None = None

    @property
    def in_steps(self) -> bool:
        """Whether the talker chooses codes one after the other."""
        return one_by_one(self._model.talker, self._model.talker.generation_config)

    def follow(
        self, text: Sequence, ends: Collection[int], inputs: Callable[[], Mapping[str, Any]], steps: Steps
    ) -> None:
        """Sees to the talker's sequence after a step: begins it, tells it of the text, notes its end.

        Args:
            text: The thinker's sequence.
            ends: Tokens that end a text, and are not spoken.
            inputs: Gives those of the prompt.
            steps: Where the text takes part.
        """
        self.look()
        if self.over or text.error is not None:
            return
        if self.sequence is not None:
            self.sequence.tell(_said(text, ends), over=text.ended)
        elif text.ended or not (text.reading or self._wait()):
            said = _said(text, ends)
            if len(said) < self._first and not text.ended:
                return
            if not len(said):
                self.over = True
            elif self.in_steps:
                self._begin(text, said, inputs(), steps)
            elif text.ended:
                self._speak_elsewhere(text, said, inputs())

    def _wait(self) -> bool:
        """Whether it begins when the text has come to its end, and no sooner."""
        return self._waits or self._reading == "together"

    @functools.cached_property
    def _reading(self) -> TextReading:
        """How the text is read."""
        return text_reading(self._model)

    def look(self) -> None:
        """Notes the end of the talker's sequence, if it has ended."""
        if not self.over and self.sequence is not None and self.sequence.ended:
            self._end()

    def fail(self, error: BaseException) -> None:
        """The sound has ended before its time; what there is of it is kept."""
        self.over, self.error = True, error

    @property
    def seconds(self) -> float:
        """Seconds that it took to make the sound."""
        return self._seconds + (0.0 if self.sequence is None else self.sequence.seconds)

    @property
    def begun(self) -> bool:
        """Whether the talker has begun."""
        return self.sequence is not None

    def begin_elsewhere(self, thinker: Mapping[str, Any], inputs: Mapping[str, Any], steps: Steps) -> None:
        """Begins with a text that transformers writes meanwhile, in a way of its own.

        Args:
            thinker: By which options it does.
            inputs: Those of the prompt.
            steps: Takes the talker's sequence to its end.
        """
        if not self.in_steps:
            _, waveform = spoken(self._model, inputs, self._speaker, thinker=thinker, talker=self._options)
            self._take_elsewhere(waveform)
            return
        prepared = prepare_talker(self._model, inputs, self._speaker, thinker=thinker, talker=self._options)
        self._take_part(prepared, TextRows(self._model, prepared, known=0), steps)
        assert self.sequence is not None
        self.sequence.tell(prepared.ids.new_zeros(0), over=True)

    def _begin(self, text: Sequence, said: Tensor, inputs: Mapping[str, Any], steps: Steps) -> None:
        """Makes the talker's sequence, which takes part from now on."""
        start = time.perf_counter()
        # Of a text that has ended, all is read at once, as transformers reads it.
        known = said if text.ended and self._reading != "alone" else said[: self._first]
        with Stated(self._request):
            prepared = prepare_talker(
                self._model, inputs, self._speaker, thinker=self._written(text, known), talker=self._options
            )
        self._take_part(prepared, TextRows(self._model, prepared, known=len(known)), steps)
        assert self.sequence is not None
        self.sequence.tell(said, over=text.ended)
        self._seconds += time.perf_counter() - start

    def _take_part(self, prepared: Prepared, rows: TextRows, steps: Steps) -> None:
        """Has a talker's request take part.

        Args:
            prepared: The request.
            rows: The text as it reads it.
            steps: Takes it to its end.
        """
        self._room = self._context(prepared)
        if self._room is not None:
            room = self._room
            prepared.criteria.append(lambda ids, scores, **_: torch.tensor([ids.shape[1] > room]))
        self.sequence = TalkerSequence(
            prepared, rows, self.frames, request=self._request, draws=self._draws, greedy=self._greedy
        )
        steps.add(self.sequence)

    def _take_elsewhere(self, waveform: Tensor) -> None:
        """Takes what transformers has made in a way of its own.

        Args:
            waveform: float32, of all frames.
        """
        self.over = True
        self.frames.take(waveform.reshape(-1).float())
        # Of each chunk a part of a frame is missing.
        fewest = (self._most - math.ceil(self._most / _CHUNK_FRAMES)) * int(self._model.code2wav.total_upsample)
        self.reason = "length" if waveform.numel() > fewest else "stop"

    def stop(self) -> None:
        """Nobody wants more of it."""
        if not self.over:
            self.over, self.reason = True, "interrupted"

    def _speak_elsewhere(self, text: Sequence, said: Tensor, inputs: Mapping[str, Any]) -> None:
        """Has the talker speak in a way of its own, which is one call; the text is there."""
        start = time.perf_counter()
        with Stated(self._request), drawn_from(self._draws):
            _, waveform = spoken(
                self._model, inputs, self._speaker, thinker=self._written(text, said), talker=self._options
            )
        self._take_elsewhere(waveform)
        self._seconds += time.perf_counter() - start

    def _written(self, text: Sequence, said: Tensor) -> dict[str, Any]:
        """Options of the thinker, by which it has written some of the text already."""
        ids = torch.cat([text.ids[:, : text.prompt], said[None]], dim=1)
        rows = None if self.media is None else self.media.rows
        return already_written(self._model, ids, rows)

    def _context(self, prepared: Prepared) -> int | None:
        """Frames that there is memory for; None if nothing limits them."""
        if self._model.coterie.max_context is None:
            return None
        most = longest(self._model, prepared.config)
        return None if most is None else max(0, most - prompt_length(prepared))

    def _end(self) -> None:
        """The talker's sequence has ended."""
        sequence = self.sequence
        assert sequence is not None
        self.over = True
        start = time.perf_counter()
        self.frames.end()
        self._seconds += time.perf_counter() - start
        self.error, sequence.error = sequence.error, None
        if self.error is None:
            self.reason = self._reason(sequence)
        elif isinstance(self.error, Stopped):
            self.reason = "interrupted"

    def _reason(self, sequence: TalkerSequence) -> SpeechEnd:
        if int(sequence.ids[0, -1]) == int(self._model.config.talker_config.codec_eos_token_id):
            return "stop"
        return "context" if self._room is not None and self._room <= self._most else "length"


class TalkerSequence(Sequence):
    """A talker's sequence: each pass after the first reads a row of the text, and makes a frame.

    Args:
        prepared: The request.
        rows: The text as it reads it.
        frames: Takes what it makes.
        request: As whom its passes are known.
        draws: Its random numbers.
        greedy: Whether it takes the likeliest codes.

    Attributes:
        seconds: Seconds that it took.
    """

    def __init__(
        self,
        prepared: Prepared,
        rows: TextRows,
        frames: Frames,
        *,
        request: Request,
        draws: Draws | None,
        greedy: bool,
    ) -> None:
        super().__init__(prepared, request=request, draws=draws, keep=lambda outputs: _hear(outputs, frames))
        self.seconds = 0.0
        self._rows = rows
        self._predicting = predicting(prepared.model.code_predictor, greedy=greedy)

    @property
    def ready(self) -> bool:
        """Whether the row of the text is there that its next pass reads."""
        return self.reading or self._rows.over or len(self.new_ids) <= self._rows.count

    def tell(self, said: Tensor, *, over: bool) -> None:
        """Tells it of the text.

        Args:
            said: Its tokens so far, int64 [N].
            over: Whether no more will come.
        """
        self._rows.tell(said, over=over)

    def run(self) -> Any:
        """Its next forward pass, and before it the further codes of the frame."""
        start = time.perf_counter()
        try:
            return super().run()
        finally:
            self.seconds += time.perf_counter() - start

    def next_inputs(self) -> dict[str, Any] | None:
        """What its next forward pass is called with, which is where the further codes of the frame come about."""
        if self.reading:
            return super().next_inputs()
        if self.request.before_layer is not None:
            self.request.before_layer()  # the codes take as long as some layers
        self._rows.supply(self._kwargs)
        with drawn_from(self._draws), self._predicting:
            return super().next_inputs()

    def take(self, outputs: Any) -> None:
        """Takes what a pass returned: the frame, and the first code of the next one."""
        start = time.perf_counter()
        try:
            super().take(outputs)
        finally:
            self.seconds += time.perf_counter() - start


def _hear(outputs: Any, frames: Frames) -> None:
    """Of a pass of the talker: the frame that the code before has become."""
    frame = outputs.hidden_states[-1]
    if frame is not None:
        frames.add(frame[0])


def _said(text: Sequence, ends: Collection[int]) -> Tensor:
    """The tokens that are spoken: not the one that ends the text. What was cut has none."""
    said = text.new_ids
    return said[:-1] if text.ended and len(said) and int(said[-1]) in ends else said

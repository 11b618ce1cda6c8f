"""An answer that ended before its model did, because of its length or somebody's wish: it goes on where it ended.

Its tokens are those that it would have had. Where its cache is still there, the next token is computed as if nothing
had been. Else the prompt is computed again, and then its tokens are, one after the other, as they were before: computed
together, they would round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from coterie.errors import UnsupportedError, UsageError
from coterie.generation.draws import drawing
from coterie.generation.interruption import Stopped, stoppable
from coterie.generation.kept_cache import KeptCache
from coterie.generation.one_sequence import files_named
from coterie.generation.steps import generated
from coterie.hf.context import DEFAULT_CONTEXT

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel

    from coterie.generation.answers import AnswerReader
    from coterie.generation.completion import Completing, Completion, Reuse
    from coterie.generation.sequence import Sequence
    from coterie.passes.current import Request

CUT = ("length", "interrupted", "time")
"""Reasons to end that are not the model's."""


class CutAnswer:
    """What there is of an answer.

    Args:
        model: The model.
        completing: What made it.
        completion: What came of it.

    Attributes:
        completion: What has come of it so far.
    """

    def __init__(self, model: PreTrainedModel, completing: Completing, completion: Completion) -> None:
        self.completion = completion
        self._model = model
        self._completing = completing
        completing.take_inputs(None)

    def go_on(
        self,
        more: int | None,
        reader: AnswerReader,
        inputs: Callable[[], BatchFeature],
        *,
        reuse: Reuse | None,
        on_text: Callable[[str], None] | None = None,
        on_reasoning: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Completion:
        """Has it go on; returns all of it. Of what is told, the beginning is left out.

        Args:
            more: New tokens at most; None for as many as there is room for.
            reader: Tells its parts apart, from the first on.
            inputs: Makes the prompt once more.
            reuse: Where it finds what was computed.
            on_text: Told what the model says.
            on_reasoning: Told what it thinks.
            should_stop: Asked before every layer.

        Raises:
            UsageError: If the context is full.
            UnsupportedError: If it was found by a search.
            CoterieError: As computing it does.
        """
        before, completing = self.completion, self._completing
        if not completing.in_steps or completing.sampling.logprobs is not None:
            raise UnsupportedError("An answer that a search has found, or with log probabilities, does not go on.")
        known = len(before.token_ids)
        room = completing.room()
        wanted = None if more is None else known + more
        most = min(one for one in (wanted, room, known + DEFAULT_CONTEXT) if one is not None)
        if most <= known:
            raise UsageError("The context is full: the answer cannot go on.", advice="Begin with a larger max_context.")
        texts, thoughts = _Beyond(before.text, on_text), _Beyond(before.reasoning, on_reasoning)
        reader.on_reasoning = thoughts.take
        completing.renew(wanted, most, on_text=texts.take, reader=reader)
        stream = completing.stream
        texts.catching_up = thoughts.catching_up = lambda: len(stream.token_ids) <= known
        interrupted, seed = False, completing.sampling.seed
        try:
            with stoppable(self._model, should_stop) as request, drawing(seed) as draws, files_named(self._model):
                sequence = self._resumed(request, reuse, most)
                if sequence is None:
                    completing.take_inputs(inputs())
                    sequence = completing.sequence(request, draws=draws, reuse=reuse, follows=before.token_ids)
                    completing.take_inputs(None)
                generated(sequence)
        except Stopped:
            interrupted = True
        done = completing.end(interrupted=interrupted)
        if len(done.token_ids) < known:
            return before  # it was stopped before it was where it had ended
        seconds = before.decode_s + done.prefill_s + done.decode_s
        self.completion = replace(done, prefill_s=before.prefill_s, decode_s=seconds)
        return self.completion

    def _resumed(self, request: Request, reuse: Reuse | None, most: int) -> Sequence | None:
        """Its sequence where it left off; None if what it goes on with is gone."""
        sequence, stream = self._completing.made, self._completing.stream
        if sequence is None or not sequence.may_go_on or not isinstance(reuse, KeptCache):
            return None
        kept = reuse.resume(sequence.ids[0, : sequence.position])
        if kept is None:
            return None
        stream.put(sequence.ids[:, : sequence.prompt])
        stream.read(sequence.new_ids.tolist())
        cache, keeper = kept
        sequence.go_on(cache, request=request, stream=stream, keeper=keeper, most=most)
        return sequence


@dataclass(slots=True)
class _Beyond:
    """Passes a text on that is told once more, from where it was told before."""

    told: str
    on_text: Callable[[str], None] | None
    catching_up: Callable[[], bool] = field(default=lambda: False)
    _again: str = ""
    _left: str | None = None

    def take(self, piece: str) -> None:
        """Takes a piece of it."""
        if self.catching_up():
            self._again += piece
            return
        if self._left is None:
            # What was held back at the end, as it might have been the beginning of something, was told then; but half a
            # character was told as none.
            self._left = self.told[len(self._again) :].rstrip("\N{REPLACEMENT CHARACTER}")
        same = len(self._left) if piece.startswith(self._left) else len(piece) if self._left.startswith(piece) else 0
        self._left = self._left[same:] if same else ""
        if piece[same:] and self.on_text is not None:
            self.on_text(piece[same:])

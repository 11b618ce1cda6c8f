"""A prompt and what is generated after it: its own tokens, cache, choice of tokens, end, and random numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from coterie.generation.draws import Draws, drawn_from
from coterie.hf.caches import cached_length, caches_in
from coterie.hf.generation_steps import (
    Positions,
    Prepared,
    after_pass,
    choose,
    last_logits,
    left_of,
    lengthen,
    may_come_in_pieces,
    next_inputs,
    piece_end,
    prefill,
    prefill_piece,
    prompt_length,
)
from coterie.passes.admission import CachesUsed
from coterie.passes.current import EncodedAhead, Request, Row, Stated
from coterie.passes.prompt_logits import PromptLogits
from coterie.spec import Phase


class Stream(Protocol):
    """Is given tokens as they come, as a streamer of transformers."""

    def put(self, value: Tensor) -> None:
        """Takes the prompt first, then each new token, [1]."""

    def end(self) -> None:
        """No more will come."""


@dataclass(frozen=True, slots=True)
class Supplied:
    """Tokens of a prompt that need not be computed: what the model keeps of them is in the sequence's cache.

    Attributes:
        position: Where the prompt goes on.
        outputs: If that is its end, what the last pass over it returned.
        positions: Likewise, where its positions are.
    """

    position: int
    outputs: Any = None
    positions: Positions | None = None


class Keeper(Protocol):
    """Keeps what is computed of a sequence, for another one that begins in the same way."""

    @property
    def kept(self) -> int:
        """Tokens of the prompt that were computed and are kept, for whoever begins in the same way."""

    def supply(self, begin: int) -> Supplied | None:
        """Puts what is known of the prompt after so many tokens into the cache; asked before each pass over it.

        Returns:
            None if the next pass is to be computed.
        """

    def passed(self, begin: int, end: int, seconds: float, outputs: Any, positions: Positions) -> None:
        """A pass over some tokens of the prompt is over: what it took, returned, and left of positions."""

    def ended(self, ids: Tensor, position: int) -> Any:
        """The sequence has ended, for whatever reason, after so many of its tokens [1, T] were computed.

        Returns:
            Its cache, if that is kept; else it is emptied, or left to itself.
        """


Chooser = Callable[[Tensor], Tensor]
"""Given the logits of a step, float32 [1, V], says the next token, [1]."""


_ENCODED = object()
"""What a pass returns that has come to an encoder, and no further."""


class Sequence:
    """One request on its way: what a forward pass is called with, and what becomes of what it returns.

    A :class:`~coterie.generation.steps.Steps` takes it from pass to pass until it ends. It computes what transformers'
    own loop would, to the bit.

    Args:
        prepared: The request, ready for its first pass.
        request: As whom its passes are known; by default as one that nobody else knows.
        stream: Given its tokens.
        draws: Its random numbers; without them, it draws from the process's.
        chooser: Chooses its tokens; by default as its settings say.
        keep: Given what each pass returned, to keep of it what is wanted. It must not refer to the sequence.
        prompt_logits: Given the logits of its prompt.
        piece: Tokens of its prompt in one pass, where its settings do not say; None for all of them. Pieces end at
            multiples of it, wherever they begin. A prompt that cannot be taken apart is one pass all the same:
            :func:`~coterie.hf.generation_steps.may_come_in_pieces`.
        keeper: Keeps what is computed of its prompt.
        follows: Tokens that its answer is known to begin with: each is chosen again, and then it is that one.

    Attributes:
        request: As whom its passes are known.
        ids: All its tokens so far [1, T], prompt included.
        prompt: How many of them are the prompt.
        position: How many of them have been computed and are kept. It begins with those that its cache holds already.
        reused: Those, and what was found of its prompt since.
        computed: Whether its last step was a forward pass; else what that would compute was there.
        model: What it is computed by.
        exact: Whether all that was computed of it has the bits that it has alone.
        ended: Whether it has ended, for whatever reason.
        on_cancelled: Called when it has ended before its time and what its caches held is free, by whoever ended it.
        error: What ended it before its time.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        request: Request | None = None,
        stream: Stream | None = None,
        draws: Draws | None = None,
        chooser: Chooser | None = None,
        keep: Callable[[Any], None] | None = None,
        prompt_logits: PromptLogits | None = None,
        piece: int | None = None,
        keeper: Keeper | None = None,
        follows: Iterable[int] = (),
    ) -> None:
        self.request = request or Request()
        self.model = prepared.model
        self.ids = prepared.ids
        self.prompt = int(prepared.ids.shape[1])
        self.exact = True
        self.ended = False
        self.error: BaseException | None = None
        self.on_cancelled: Callable[[], None] = _nothing
        self._prepared = prepared
        self._kwargs = prepared.kwargs
        self._cached = bool(prepared.kwargs["use_cache"])
        self._begun = False
        self.position = max((cached_length(cache) or 0 for cache in caches_in(prepared.kwargs.values())), default=0)
        self.reused = self.position
        self.computed = True
        self._supplied: Supplied | None = None
        # Read from the settings here: a pass over a piece is given none.
        length = prompt_length(prepared)
        size = prepared.config.prefill_chunk_size or piece or length
        in_pieces = length > size or self.position > 0 or bool(prepared.media.each)
        self._size = size if in_pieces and may_come_in_pieces(prepared) else None
        self._keeper = keeper
        self._follows = tuple(follows)
        # The name of its cache, where it could go on with what is left of it.
        self._left: str | None = None
        self._seconds = self._encoding_s = 0.0
        self._stream = stream
        self._draws = draws
        self._chooser = chooser
        self._keep = keep
        self._prompt_logits = prompt_logits
        self._caches = CachesUsed()
        self._positions = Positions(prepared, goes_on=self.position > 0)
        if stream is not None:
            stream.put(self.ids.cpu())

    @property
    def new_ids(self) -> Tensor:
        """The tokens after the prompt, int64 [N]."""
        return self.ids[0, self.prompt :]

    @property
    def phase(self) -> Phase:
        """What kind of pass its next one is."""
        return "decode" if self._begun and self._cached else "prefill"

    @property
    def row(self) -> Row:
        """Where its next pass goes on."""
        return Row(self.request, self.position)

    @property
    def cache(self) -> Any:
        """What keeps what came before; None where nothing does, or more than one thing."""
        found = caches_in(self._kwargs.values())
        return found[0] if len(found) == 1 else None

    @property
    def keeps_tokens(self) -> bool:
        """Whether it has a cache: what came before is not computed again."""
        return bool(caches_in(self._kwargs.values()))

    @property
    def reading(self) -> bool:
        """Whether its prompt is still being computed."""
        return not self._begun

    @property
    def ready(self) -> bool:
        """Whether what its next pass reads is there."""
        return True

    @property
    def coming(self) -> int:
        """Tokens that its next pass computes."""
        if self._begun:
            return 1 if self._cached else int(self.ids.shape[1])
        begin, end = self._next_piece() or (self.position, prompt_length(self._prepared))
        return end - begin

    def encode_apart(self) -> None:
        """Has the encoders of pictures and sounds run in passes of their own, if its prompt comes in pieces."""
        if self._size is not None:
            self.request.encodings = []

    def run(self) -> Any:
        """Its next forward pass, alone; returns what the model returns.

        What of the prompt need not be computed takes a step, too: whoever is beside it waits for no more than that. So
        does an encoder of pictures or sounds.
        """
        self._supplied = self._keeper.supply(self.position) if self.reading and self._keeper is not None else None
        if self._supplied is not None:
            return self._supplied.outputs
        inputs = self.next_inputs()
        piece = self._next_piece()
        rows = (self.row,) if self._begun or piece else None  # transformers may take a prompt apart by itself
        start = time.perf_counter()
        try:
            with Stated(self.request, phase=self.phase, rows=rows), self._caches, self._listening():
                if inputs is not None:
                    outputs = self.model(**inputs, return_dict=True)
                elif piece is not None:
                    outputs = prefill_piece(self._prepared, self._kwargs, *piece)
                else:
                    outputs = prefill(self._prepared, self._kwargs)
        except EncodedAhead:
            self._encoding_s += time.perf_counter() - start
            return _ENCODED
        if self.request.encodings:
            self.request.encodings.clear()
        self._seconds, self._encoding_s = self._encoding_s + time.perf_counter() - start, 0.0
        self._positions.note()
        return outputs

    def next_inputs(self) -> dict[str, Any] | None:
        """What its next forward pass is called with; None where that is the prompt's."""
        self._positions.put_back()
        if not self._begun:
            return None
        # Models may run others to prepare a pass: those are not of its phase.
        with Stated(self.request), self._caches:
            return next_inputs(self.model, self.ids, self._kwargs)

    def take(self, outputs: Any) -> None:
        """Takes what a pass returned for it: chooses the next token, and sees whether it is the last one."""
        self.computed = self._supplied is None
        if outputs is _ENCODED:
            return
        prepared = self._prepared
        if self.reading:
            read = self._read(outputs)
            if read < prompt_length(prepared):
                self.position = read
                return
        if self._keep is not None:
            self._keep(outputs)
        self._kwargs = after_pass(prepared.model, outputs, self._kwargs)
        if self._prompt_logits is not None:
            self._prompt_logits.end(outputs, self._kwargs)
            self._prompt_logits = None
        if self._cached:
            self.position = self.position + 1 if self._begun else prompt_length(prepared)
        self._begun = True
        scores = last_logits(outputs, self.ids)
        if prepared.processors:
            # Some run the model once more.
            with Stated(self.request), self._caches:
                scores = prepared.processors(self.ids, scores)
        token = self._choose(scores) if self._chooser is None else self._chooser(scores)
        if (place := int(self.ids.shape[1]) - self.prompt) < len(self._follows):
            token = torch.full_like(token, self._follows[place])
        self.ids = torch.cat([self.ids, token[:, None]], dim=-1)
        done = bool(prepared.criteria(self.ids, None))
        if self._stream is not None:
            self._stream.put(token.cpu())
        if done:
            self._end()
            if self._stream is not None:
                self._stream.end()

    def _read(self, outputs: Any) -> int:
        """Some of the prompt has been computed, or was there; returns where it goes on."""
        found, self._supplied = self._supplied, None
        if found is not None:
            self.reused += found.position - self.position
            if found.positions is not None:
                self._positions = found.positions
            elif not self.position:
                self._positions.go_on(self._prepared)
            return found.position
        begin, end = self._next_piece() or (self.position, prompt_length(self._prepared))
        if self._keeper is not None:
            self._keeper.passed(begin, end, self._seconds, outputs, self._positions)
        return end

    @property
    def may_go_on(self) -> bool:
        """Whether it has ended and left what it could go on with, but for its cache."""
        return self._left is not None

    def go_on(self, cache: Any, *, request: Request, stream: Stream, keeper: Keeper, most: int) -> None:
        """Takes part again, as if it had not ended: it :attr:`may_go_on`.

        Args:
            cache: Its cache, as it left it.
            request: As whom its passes are known from now on.
            stream: Given its further tokens.
            keeper: Keeps its cache.
            most: New tokens at which it ends, those that it has included.
        """
        assert self._left is not None
        lengthen(self._prepared, self.prompt + most)
        self._kwargs[self._left] = cache
        self._left, self.ended = None, False
        self.request, self._stream, self._keeper = request, stream, keeper

    def fail(self, error: BaseException) -> None:
        """Ends it before its time, and frees what its caches hold, whoever remembers the error."""
        self.error = error
        self.cancel()

    def cancel(self) -> None:
        """Ends it before its time, as nobody wants it any more; what its caches hold is free at once.

        Not while a pass computes it: see :meth:`~coterie.generation.steps.Steps.remove`.
        """
        self._caches.let_go(but=self._end())
        self.on_cancelled()

    def check(self) -> None:
        """Raises what ended it before its time, once."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame

    def _listening(self) -> AbstractContextManager[None]:
        """Whoever is given the logits of its prompt, listens."""
        return nullcontext() if self._prompt_logits is None else self._prompt_logits.listening()

    def _next_piece(self) -> tuple[int, int] | None:
        """Where in the prompt the next pass begins and ends; None if the prompt is over, or not taken apart."""
        if self._begun or self._size is None:
            return None
        return self.position, piece_end(self._prepared, self.position, self._size)

    def _end(self) -> Any:
        """It takes part no more; returns its cache if that is kept."""
        self.ended = True
        self.request.encodings = None
        kept = None if self._keeper is None else self._keeper.ended(self.ids, self.position)
        self._keeper = None
        # Whoever reads its tokens need not keep its cache.
        left: dict[str, Any] = {}
        if kept is not None and self._begun:
            self._left, left = left_of(self._kwargs)
        self._prepared.kwargs.clear()
        self._kwargs = left
        return kept

    def _choose(self, scores: Tensor) -> Tensor:
        sample = bool(self._prepared.config.do_sample)
        with drawn_from(self._draws if sample else None):
            return choose(scores, sample=sample)


def _nothing() -> None:
    """Nobody wants to know."""

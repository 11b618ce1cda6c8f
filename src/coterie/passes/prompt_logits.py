"""The logits of every position of a prompt, some rows after the other, in the pass that reads it.

Together they would take more memory than the layers do: 150,000 of them for each token. So the model's head is given
some rows at a time, whose logits are handed on and forgotten, and then the last position as without this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from coterie.errors import UnsupportedError
from coterie.hf.last_logits import PARAMETER, changed_after_head, output_head, takes_parameter
from coterie.passes.forward_call import in_slices, slicing
from coterie.spec import LAST_POSITIONS

_FEWEST = 16
"""Rows of a slice: a product of fewer rounds otherwise than that of all."""
_TOLERANCE = 0.05
"""By how much the last row's logits may differ from those handed on, of the largest: bits of a product of one row."""


class PromptLogits:
    """What the passes over one prompt compute.

    Args:
        model: The model, one of transformers.
        kwargs: What passes are going to be called with: they are to show the model's head every position.
        told: Given logits [R, V], in the order of the prompt.

    Raises:
        UnsupportedError: If the model has no head that is known.
    """

    def __init__(self, model: Any, kwargs: dict[str, Any], told: Callable[[Tensor], None]) -> None:
        head = output_head(model)
        if head is None or model.config.is_encoder_decoder:
            raise UnsupportedError(
                f"{type(model).__name__} does not show the logits of a prompt's tokens.", field="prompt_logprobs"
            )
        if PARAMETER in kwargs:
            kwargs[PARAMETER] = 0
        self._model = model
        self._head = head
        self._told = told
        self._change = changed_after_head(model.config)
        self._last: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, this thread's passes of the model are over the prompt."""
        hook = self._head.register_forward_pre_hook(self._slices)
        try:
            with slicing():
                yield
        finally:
            hook.remove()

    def end(self, outputs: Any, kwargs: dict[str, Any]) -> None:
        """Sees that what was handed on is what the model says of its last position.

        Args:
            outputs: What the last of its passes returned.
            kwargs: What passes are called with from now on.

        Raises:
            UnsupportedError: If it computes more than its head does.
        """
        if PARAMETER in kwargs:
            kwargs[PARAMETER] = 1
        last, self._last = self._last, None
        said = outputs.logits[0, -1].float()
        if last is None or last.shape != said.shape or (last - said).abs().max() > _TOLERANCE * said.abs().max():
            raise UnsupportedError(
                f"{type(self._model).__name__} changes its logits in a way that is not known: those of a prompt's "
                "tokens cannot be shown.",
                field="prompt_logprobs",
            )

    def _slices(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not in_slices() or not args or args[0].dim() != 3:
            return None
        rows = int(args[0].shape[1])
        for start, stop in _parts(rows):
            logits = self._change(head.forward(args[0][:, start:stop].contiguous(), *args[1:]))
            self._told(logits[0])
            if stop == rows:
                self._last = logits[0, -1].float()
        # As many as without this, so that the bits of what comes next stay what they are.
        kept = 1 if takes_parameter(type(self._model)) else LAST_POSITIONS
        return (args[0][:, -kept:].contiguous(), *args[1:])


def _parts(rows: int) -> Iterator[tuple[int, int]]:
    """Slices of so many rows, none of them shorter than what rounds as all do."""
    start = 0
    while start < rows:
        stop = rows if rows - start < LAST_POSITIONS + _FEWEST else start + LAST_POSITIONS
        yield start, stop
        start = stop

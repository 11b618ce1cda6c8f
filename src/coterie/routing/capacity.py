"""Switch Transformers: one expert per token, as long as it has room.

The router takes the best expert of each token and lets each expert serve only so many tokens of a sequence; tokens
beyond that get none. Under a mask the best available expert is taken, with its probability over all experts (nothing
is renormalised), and tokens that were moved count towards the room of the expert that they were moved to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from coterie.routing.selective import Selection, SelectiveRouter
from coterie.routing.steps import Step, step_name


def chooses_by_argmax(steps: list[Step]) -> bool:
    """Whether a forward takes the single best expert of each token and then looks at how much room it has.

    Some releases ask for the best expert by ``max``, which gives its probability, too.
    """
    names = [step.name for step in steps]
    if names.count("one_hot") != 1 or "cumsum" not in names or "topk" in names:
        return False
    before = names[: names.index("one_hot")]
    return [name for name in before if name in ("argmax", "max")] in (["argmax"], ["max"])


class CapacityRouter(SelectiveRouter):
    """Switch Transformers; its own forward over the scores of available experts."""

    fixed_top_k: ClassVar[int | None] = 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the class's forward gives, chosen among available experts; a token without one has no mark."""
        if self.selection.absent is None:
            return self.stock_class.forward(self, *args, **kwargs)
        with _BestAvailable(self.selection):
            return self.stock_class.forward(self, *args, **kwargs)


class _BestAvailable(TorchFunctionMode):
    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self._selection = selection

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = step_name(func)
        if name in ("argmax", "max"):
            result = func(self._excluded(args[0]), *args[1:], **kwargs)
            if name == "max" and self._selection.used == 0:
                result.values.zero_()
            return result
        result = func(*args, **kwargs)
        if name == "one_hot" and self._selection.used == 0:
            return torch.zeros_like(result)
        return result

    def _excluded(self, scores: Tensor) -> Tensor:
        assert self._selection.absent is not None
        return scores.masked_fill(self._selection.absent.to(scores.device), -torch.inf)

"""Sees what a class's own forward adds to its output, expert by expert, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from coterie.kernels import Grouping, group_by_expert
from coterie.passes.contributions import Contributions


class _Additions(TorchFunctionMode):
    """Looks at every ``index_add_`` of this thread: the n-th adds the rows of the n-th expert that is hit.

    Args:
        noted: Where norms are noted.
        grouping: Which rows each expert has.
    """

    def __init__(self, noted: Contributions, grouping: Grouping) -> None:
        super().__init__()
        self._noted = noted
        self._grouping = grouping
        self.seen = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func == torch.Tensor.index_add_ and not kwargs and len(args) == 4:
            self._see(args[2], args[3])
        return func(*args, **(kwargs or {}))

    def _see(self, tokens_N: torch.Tensor, rows_ND: torch.Tensor) -> None:
        number, grouping = self.seen, self._grouping
        self.seen += 1
        if number >= len(grouping.experts) or not torch.equal(tokens_N, grouping.tokens[number]):
            self._noted.give_up()
        else:
            self._noted.add(tokens_N, grouping.slots[number], rows_ND)

    @property
    def complete(self) -> bool:
        """Whether every expert's rows were seen."""
        return self.seen == len(self._grouping.experts)


@contextmanager
def seen_additions(noted: Contributions | None, index_TK: torch.Tensor, end: int) -> Iterator[None]:
    """Inside, notes what a class's forward adds with ``index_add_``, one call per expert in ascending id.

    All classes of transformers whose own forward is run here do so. Of one that does anything else nothing is noted:
    the rows of every call are compared with those that the expert must have.

    Args:
        noted: Where to; None to look at nothing.
        index_TK: int64 [T, K], the ids that the forward is given.
        end: The first id that it does not compute.
    """
    if noted is None:
        yield
        return
    with _Additions(noted, group_by_expert(index_TK, end)) as additions:
        yield
    if not additions.complete:
        noted.give_up()
    noted.leave_out()

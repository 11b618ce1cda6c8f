"""The caches of several sequences whose next tokens go through a model in one pass, as one that transformers takes.

transformers' own batch has one cache, in which all sequences are padded to one length and none can come or go. Here
each row keeps the cache that it has alone; the layers ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn


class RowsApartError(Exception):
    """A layer was given several rows with caches of their own and cannot compute them; never leaves this package."""


class RowsAllLeftError(Exception):
    """Nobody wants a token of a pass any more; never leaves this package."""


class RowCaches:
    """Caches, one for each row of a decode step. Which is whose is their order.

    What transformers asks of a cache it answers for the longest. Masks are made by it, and a row of one token needs
    none.

    Args:
        caches: Those of the rows.
        lengths: Tokens in each.
        let_go: Told of a row that has left, to let go of its cache.
        depth: Layers that have a cache.

    Attributes:
        caches: Those given; None for one that is let go of.
        lengths: Those given.
        is_compileable: As of a cache of transformers.
    """

    is_compileable = False

    def __init__(
        self, caches: Sequence[Any], lengths: Sequence[int], let_go: Callable[[int], None], *, depth: int
    ) -> None:
        self.caches = list(caches)
        self.lengths = tuple(lengths)
        self._let_go = let_go
        self._leaving: set[int] = set()
        self._depth = depth
        self._computed = 0

    @property
    def inputs(self) -> dict[str, Any]:
        """What else a model is called with."""
        return {}

    @property
    def left(self) -> frozenset[int]:
        """Rows that nobody wants any more."""
        return frozenset(self._leaving)

    def leave(self, row: int) -> None:
        """Nobody wants a row any more; by any thread."""
        self._leaving.add(row)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, the model computes the pass. The caches are as they were if it fails."""
        yield

    def commit(self) -> None:
        """The pass is over: its tokens are kept."""

    @property
    def through(self) -> bool:
        """Whether all layers have computed their tokens."""
        return self._computed == self._depth

    def _begin_layer(self, layer_idx: int) -> None:
        """A layer computes the tokens.

        Raises:
            RowsApartError: If layers do not come one after the other.
        """
        if layer_idx != self._computed:
            raise RowsApartError(f"Layer {layer_idx} of {self._depth} comes after {self._computed} layers.")
        self._computed += 1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest, those that all layers have computed."""
        return max(self.lengths) + self.through

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """What a mask would be as long as, and where it would begin."""
        return max(self.lengths) + query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Tokens before the new ones."""
        return max(self.lengths)

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses keys and values that are given in one tensor.

        Raises:
            RowsApartError: Always.
        """
        raise RowsApartError("A layer computes rows as a batch of one cache.")

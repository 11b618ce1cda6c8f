"""Random numbers of one generation: a seed gives the same text in every thread, whatever others draw meanwhile.

torch's random numbers are the process's, and transformers draws from those. Here each generation has a generator of its
own, which is handed to every function that draws in its thread. With the same seed it gives the same numbers as
``torch.manual_seed`` and the process's generator would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWING: frozenset[Any] = frozenset(
    getattr(owner, name)
    for owner, names in (
        (torch, ("multinomial", "bernoulli", "normal", "rand", "randn", "randint", "randperm")),
        (
            torch.Tensor,
            (
                "multinomial", "bernoulli", "bernoulli_", "normal_", "uniform_", "random_", "exponential_",
                "geometric_", "cauchy_", "log_normal_",
            ),
        ),
    )
    for name in names
)  # fmt: skip
"""Functions that take a generator."""


class _OwnNumbers(TorchFunctionMode):
    """Hands a generator to whatever draws in this thread."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _DRAWING and given.get("generator") is None:
            given["generator"] = self._generator
        return func(*args, **given)


class Draws:
    """The random numbers of one generation, in the thread that begins it.

    While they are used every call of torch takes a little longer, which a small model feels. So they are used where a
    token is drawn, and nowhere else.

    Args:
        seed: As for ``torch.manual_seed``.
    """

    def __init__(self, seed: int) -> None:
        self._numbers = _OwnNumbers(torch.Generator().manual_seed(seed))
        self._in_use = False

    def begin(self) -> None:
        """What is drawn from now on comes from the seed. Harmless when repeated."""
        if not self._in_use:
            self._numbers.__enter__()  # type: ignore[no-untyped-call]
            self._in_use = True

    def end(self) -> None:
        """Until :meth:`begin` is called again, draws come from the process's numbers again. Harmless when repeated."""
        if self._in_use:
            self._in_use = False
            self._numbers.__exit__(None, None, None)  # type: ignore[no-untyped-call]


@contextmanager
def drawn_from(draws: Draws | None) -> Iterator[None]:
    """Inside, what is drawn comes from these random numbers; with None, from the process's as ever."""
    if draws is None:
        yield
        return
    draws.begin()
    try:
        yield
    finally:
        draws.end()


@contextmanager
def drawing(seed: int | None) -> Iterator[Draws | None]:
    """The random numbers of a seed, no longer used afterwards; None without a seed."""
    if seed is None:
        yield None
        return
    draws = Draws(seed)
    try:
        yield draws
    finally:
        draws.end()

"""What the matrices of experts are multiplied with, seen while a forward pass computes.

Whatever class computes the experts, in the end it multiplies rows with a parameter of the expert that is its turn. So
every product of the thread is looked at, and those with such a parameter are told of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from coterie.cache import Tensors
from coterie.errors import UnsupportedError
from coterie.passes.bank import StreamedBank
from coterie.spec import ExpertKey

_POSITIONS: dict[Callable[..., Any], int] = {
    **dict.fromkeys((linear, torch.matmul, torch.mm, torch.bmm), 0),
    **dict.fromkeys((torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.bmm), 0),
    **dict.fromkeys((torch.addmm, torch.baddbmm, torch.Tensor.addmm, torch.Tensor.baddbmm), 1),
}
"""Products → the position of the rows among their arguments; the matrix comes after them."""


class Sees(Protocol):
    """Who is told of products."""

    def __call__(self, key: ExpertKey, parameter: str, rows: torch.Tensor) -> None:
        """An expert's matrix is multiplied.

        Args:
            key: The expert.
            parameter: Which of its parameters.
            rows: [..., K], what with; valid during the call.
        """
        ...


class SeenProducts(TorchFunctionMode):
    """Inside, tells of what the experts of some banks are multiplied with. For one thread.

    Args:
        banks: The banks.
        sees: Told of each product.
    """

    def __init__(self, banks: Iterable[StreamedBank], sees: Sees) -> None:
        super().__init__()
        self._banks = {streamed: tuple(streamed.bank.parameters) for streamed in banks}
        self._sees = sees
        self._key: ExpertKey | None = None
        self._parameters: dict[int, str] = {}

    def __enter__(self) -> SeenProducts:
        for streamed in self._banks:
            streamed.before_expert = self._begins
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for streamed in self._banks:
            streamed.before_expert = None
        self._parameters = {}

    def _begins(self, streamed: StreamedBank, key: ExpertKey, tensors: Tensors) -> None:
        """From now on, products with these parameters are this expert's."""
        self._key = key
        names = self._banks[streamed]
        # Where a matrix begins: one that multiplies it in parts has the same rows for each of them.
        self._parameters = {
            tensor.data_ptr(): name for name, tensor in zip(names, tensors, strict=True) if tensor.dim() == 2
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        at = _POSITIONS.get(func)
        if at is not None and len(args) > at + 1 and self._key is not None:
            rows, matrix = args[at], args[at + 1]
            name = self._parameters.get(matrix.data_ptr())
            if name is not None:
                # A product of many copies of the same rows, as for all experts at once, is one product.
                self._sees(self._key, name, rows[0] if rows.dim() == 3 and rows.stride(0) == 0 else rows)
        return func(*args, **(kwargs or {}))


def check_seen(bank: StreamedBank, seen: Iterable[str]) -> None:
    """Makes sure that every matrix of a bank's experts was told of.

    Raises:
        UnsupportedError: If the class computes with one in a way that is not seen.
    """
    matrices = {name for name, shape in bank.bank.parameters.items() if len(shape) == 2}
    unseen = sorted(matrices - set(seen))
    if unseen:
        raise UnsupportedError(
            f"What {unseen[0]} of the experts of {bank.bank.key} is multiplied with was not seen.",
            advice="Quantise this model without calibration, and please report its class.",
            bank=str(bank.bank.key),
            parameter=unseen[0],
        )

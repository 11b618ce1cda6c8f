"""What a router would choose for a hidden state that is not yet its own: a prediction, which changes nothing.

The class's forward runs up to its choice, the last top-k, and no further: the ids are taken from there, so every way
of forming scores, biases and groups counts as it does when the router is asked in earnest. Where the choice is that of
the highest logits, which most classes' is, one product is all it takes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from coterie.errors import UnsupportedError
from coterie.routing.anatomy import anatomy_of
from coterie.routing.families import RouterFamily, examine, router_rows
from coterie.routing.locate import find_router
from coterie.routing.rehearsal import Rehearsal
from coterie.routing.selective import Selection, SelectiveRouter
from coterie.routing.sites import method_that_routes
from coterie.routing.steps import Step, step_name

_KEEPS_ORDER = frozenset(
    {
        "linear",
        "softmax",
        "sigmoid",
        "topk",
        "reshape",
        "view",
        "flatten",
        "to",
        "type",
        "float",
        "unsqueeze",
        "squeeze",
    }
)
"""Steps that leave the order of the logits as it is."""


class Preview:
    """Asks a block's router ahead of time. Made by :func:`preview_of`.

    Args:
        router: The router, or the block where a method of the block routes.
        run: Routes, given what the router is given.
        topk_calls: The top-k calls of a forward, of which the last one is the choice; 0 if what ``run`` returns are
            scores [T, E].
        top_k: K.
        absent: bool [E], True where an expert must not be chosen; None if all may be.
    """

    def __init__(
        self, router: nn.Module, run: Callable[..., Any], topk_calls: int, top_k: int, absent: Tensor | None
    ) -> None:
        self._router = router
        self._run = run
        self._topk_calls = topk_calls
        self._top_k = top_k
        self._absent = absent

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """The ids [T, K] that would be chosen, best first; None if that cannot be said.

        Args:
            args: What the router is called with.
            kwargs: Likewise.
        """
        if self._router.training:  # it may draw random numbers, which others would then not get
            return None
        if not self._topk_calls:
            return self._best(self._run(*args, **kwargs), self._top_k)
        try:
            with _UpToChoice(self._topk_calls, self._best):
                self._run(*args, **kwargs)
        except _Chosen as chosen:
            return chosen.ids
        return None

    def _best(self, scores_TE: Tensor, top_k: int) -> Tensor:
        if self._absent is not None:
            scores_TE = scores_TE.masked_fill(self._absent, -torch.inf)
        return torch.topk(scores_TE, top_k, dim=-1).indices


def preview_of(moe_block: nn.Module) -> Preview | None:
    """A preview of a block's router, or None if its way to choose is not known.

    Args:
        moe_block: The parent of the experts module, such as ``model.layers[0].mlp``; its router may be adapted already.
    """
    try:
        router = find_router(moe_block).module
    except UnsupportedError:
        return None
    method = method_that_routes(moe_block, router)
    if method is not None:
        own, absent = method
        if len(_required(own.function)) != 1:
            return None

        def run(*args: Any, **kwargs: Any) -> Any:
            return own.function(moe_block, type(router).forward(router, *args, **kwargs))

        return Preview(moe_block, run, own.anatomy.topk_calls, own.anatomy.top_k, absent)
    return _of_router(router)


def _of_router(router: nn.Module) -> Preview | None:
    stock_class: type[nn.Module] = getattr(router, "stock_class", type(router))
    rehearsal = Rehearsal(router, "forward")
    rehearsal.function = stock_class.forward
    try:
        steps = rehearsal.steps()
    except Exception:  # whatever a class of another release does with arguments that it does not expect
        return None
    anatomy = anatomy_of(steps)
    selection: Selection | None = router.selection if isinstance(router, SelectiveRouter) else None
    if isinstance(anatomy, str):
        family = examine(router)
        if not isinstance(family, RouterFamily):
            return None
        # One expert after the other, or by argmax: nearly always the best by logits.
        top_k, by_logits, topk_calls = family.top_k, True, 0
    else:
        last = max(i for i, step in enumerate(steps) if step.name == "topk")
        by_logits = _is_by_logits(router, steps[: last + 1])
        top_k, topk_calls = anatomy.top_k, anatomy.topk_calls
    absent = None
    if selection is not None:
        absent, top_k = selection.absent, selection.used
        if not top_k:
            return None
    if by_logits:
        return Preview(router, functools.partial(_logits, router), 0, top_k, absent)
    return Preview(router, functools.partial(stock_class.forward, router), topk_calls, top_k, absent)


def _is_by_logits(router: nn.Module, steps: list[Step]) -> bool:
    """Whether the highest of the logits are chosen, which one product with the router's weight gives."""
    names = [step.name for step in steps]
    plain = not router._modules and router._parameters.keys() <= {"weight", "bias"}
    return plain and names.count("linear") == names.count("topk") == 1 and _KEEPS_ORDER.issuperset(names)


def _logits(router: nn.Module, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    rows_EH = router_rows(router)
    bias = router._parameters.get("bias")
    if hidden.numel() == rows_EH.shape[1] and rows_EH.dtype == hidden.dtype:
        # Half the time of a product with a matrix of one row.
        logits_1E = torch.mv(rows_EH, hidden.reshape(-1)).unsqueeze(0)
        return logits_1E if bias is None else logits_1E + bias
    return linear(hidden.reshape(-1, rows_EH.shape[1]).to(rows_EH.dtype), rows_EH, bias)


def _required(function: Callable[..., Any]) -> list[str]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


class _Chosen(BaseException):
    """Ends a forward at its choice; not an error, so nothing that handles errors stops it."""

    def __init__(self, ids: Tensor) -> None:
        super().__init__()
        self.ids = ids


class _UpToChoice(TorchFunctionMode):
    def __init__(self, topk_calls: int, best: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self._left = topk_calls
        self._best = best

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if step_name(func) == "topk":
            self._left -= 1
            if not self._left:
                scores = args[0] if args else kwargs["input"]
                top_k = args[1] if len(args) > 1 else kwargs["k"]
                raise _Chosen(self._best(scores, top_k))
        return func(*args, **kwargs)

"""Which adapter fits a router, and how a router is replaced."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from coterie.errors import UnsupportedError, UsageError
from coterie.routing.always_norm import AlwaysNormRouter
from coterie.routing.availability import Availability
from coterie.routing.capacity import CapacityRouter, chooses_by_argmax
from coterie.routing.mixtral import MixtralRouter
from coterie.routing.optional_norm import OptionalNormRouter
from coterie.routing.own_forward import OwnForward, OwnForwardRouter
from coterie.routing.rehearsal import Rehearsal
from coterie.routing.selective import Selection, SelectiveRouter
from coterie.routing.sparse_mixer import SparseMixerRouter

ADVICE = "missing='drop' and missing='error' work for every model."

_WRITTEN_OUT = (OptionalNormRouter, AlwaysNormRouter, MixtralRouter, SparseMixerRouter)
"""Adapters with a forward of their own, which is faster. One serves a class if, with nothing masked, it takes the very
steps that the class's forward takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterFamily:
    """Routers that choose in the same way.

    Attributes:
        name: The way, in words.
        adapter: What replaces them.
        width: How many they choose from: the experts, and for some classes choices without an expert.
        top_k: K of this router.
        own: The class's forward and where it chooses, for adapters that run it.
    """

    name: str
    adapter: type[SelectiveRouter]
    width: int
    top_k: int
    own: OwnForward | None = None

    @property
    def fixed_top_k(self) -> bool:
        """Whether the number of experts per token is part of the class's arithmetic."""
        return self.adapter.fixed_top_k is not None


def router_family(module: nn.Module) -> RouterFamily | None:
    """The family of a router module (stock or adapted already), or None if it has no adapter."""
    found = examine(module)
    return found if isinstance(found, RouterFamily) else None


def require_family(module: nn.Module, *, purpose: str) -> RouterFamily:
    """The family of a router module.

    Args:
        module: The router.
        purpose: What needs it, such as ``missing='mask'``; named in the error.

    Raises:
        UnsupportedError: If the router's class has no adapter.
    """
    found = examine(module)
    if isinstance(found, RouterFamily):
        return found
    raise unsupported(type(module).__name__, found, purpose)


def unsupported(class_name: str, reason: str, purpose: str) -> UnsupportedError:
    """The error for a class that cannot be adapted."""
    return UnsupportedError(
        f"{purpose} is not supported for routers of class {class_name}, which {reason}.",
        advice=ADVICE,
        router_class=class_name,
        reason=reason,
    )


def adapt_router(
    router: nn.Module,
    *,
    available: Tensor | None = None,
    experts_per_token: int | None = None,
    purpose: str = "Masking experts or changing the experts per token",
) -> nn.Module:
    """Makes the replacement of a router that chooses among the available experts only.

    Args:
        router: A router of a supported class; on the meta device too. It is not changed.
        available: bool [E], or None if all experts are. With all of them available the output is bit-equal to stock.
        experts_per_token: How many experts a token gets instead of the model's own number.
        purpose: What the adapter is wanted for; named in the error for unsupported routers.

    Returns:
        An instance of a subclass of the router's class with the same parameters, buffers, hooks and attributes, under
        the same names. What masking means is described in :mod:`coterie.routing.selective`.

    Raises:
        UnsupportedError: If the router's class has no adapter, or its number of experts per token is fixed.
        UsageError: If ``experts_per_token`` is not in 1..E, or ``available`` is not a bool [E].
    """
    family = require_family(router, purpose=purpose)
    selection = select(
        type(router).__name__,
        family,
        num_experts=_count(router, family, available),
        available=available,
        experts_per_token=experts_per_token,
    )
    adapter = _replacement(_stock(router), family.adapter, selection)
    if family.own is not None:
        cast(OwnForwardRouter, adapter).own = family.own
    if "top_k" in router.__dict__ and (family.own is None or family.own.sets_top_k):
        adapter.top_k = selection.used if family.own is not None else selection.top_k
    return adapter


def select(
    class_name: str,
    family: RouterFamily,
    *,
    num_experts: int,
    available: Tensor | None,
    experts_per_token: int | None,
) -> Selection:
    """What may be chosen of E experts, and how many; the arguments are those of :func:`adapt_router`."""
    top_k = family.top_k if experts_per_token is None else experts_per_token
    if not 1 <= top_k <= num_experts:
        raise UsageError(
            f"experts_per_token must be between 1 and {num_experts}, the experts of a layer, not {top_k}.",
            got=top_k,
            num_experts=num_experts,
        )
    if family.fixed_top_k and top_k != family.top_k:
        raise unsupported(class_name, f"always chooses {family.top_k} expert(s) per token", "experts_per_token")
    if available is None:
        available = torch.ones(num_experts, dtype=torch.bool, device="cpu")
    state = Availability(num_experts=num_experts, top_k=top_k, available=available.to("cpu", copy=True))
    # Choices without an expert, such as the identity, are always there.
    free = torch.zeros(family.width - num_experts, dtype=torch.bool, device="cpu")
    return Selection(
        top_k=top_k,
        used=min(top_k, state.count + len(free)),
        num_experts=num_experts,
        absent=None if state.complete else torch.cat([~state.available, free]),
    )


def router_rows(router: nn.Module, num_experts: int | None = None) -> Tensor:
    """The router's row of each expert.

    Args:
        router: Any module that forms scores by a product with one row per expert.
        num_experts: E; rows beyond these belong to choices without an expert.

    Returns:
        [E, H], the parameter itself or the first rows of it.

    Raises:
        UnsupportedError: If the module has no such rows.
    """
    rows = router._parameters.get("weight")
    if rows is None or rows.ndim != 2:
        # The last product of the module is the one that gives the scores.
        rows = next((p for p in reversed(list(router.parameters())) if p.ndim == 2), None)
    if rows is None or (num_experts is not None and rows.shape[0] < num_experts):
        reason = "has no row for each expert"
        raise unsupported(type(router).__name__, reason, "Comparing experts by their router rows (missing='nearest')")
    return rows if num_experts is None or rows.shape[0] == num_experts else rows[:num_experts]


def examine(router: nn.Module) -> RouterFamily | str:
    """The family of a router module, or why it has no adapter, as the end of a sentence on its class."""
    stock = _stock(router)
    rehearsal = Rehearsal(stock, "forward")
    own = OwnForward.of(rehearsal)
    if isinstance(own, str):
        return _by_argmax(stock, rehearsal) or _written_out(rehearsal, None) or own
    return _written_out(rehearsal, own) or RouterFamily(
        name=own.anatomy.family,
        adapter=OwnForwardRouter,
        width=own.anatomy.width,
        top_k=own.anatomy.top_k,
        own=own,
    )


def _by_argmax(stock: nn.Module, rehearsal: Rehearsal) -> RouterFamily | None:
    steps = _attempt(rehearsal.steps)
    if steps is None or not chooses_by_argmax(steps):
        return None
    return RouterFamily(
        name="softmax, best expert with room", adapter=CapacityRouter, width=router_rows(stock).shape[0], top_k=1
    )


def _written_out(rehearsal: Rehearsal, own: OwnForward | None) -> RouterFamily | None:
    """The family whose adapter takes the same steps as the class's own forward, if there is one."""
    probe = rehearsal.owner
    weight = probe._parameters.get("weight")
    if weight is None or weight.ndim != 2:
        return None
    expected = _attempt(rehearsal.steps)
    for adapter in _WRITTEN_OUT:
        top_k = adapter.fixed_top_k or (own.anatomy.top_k if own is not None else None)
        if expected is None or top_k is None:
            continue
        selection = Selection(top_k=top_k, used=top_k, num_experts=weight.shape[0], absent=None)
        candidate = _replacement(probe, adapter, selection)
        if _attempt(functools.partial(rehearsal.steps_of, candidate)) == expected:
            name = own.anatomy.family if own is not None else "sparse mixer"
            return RouterFamily(name=name, adapter=adapter, width=weight.shape[0], top_k=top_k)
    return None


def _attempt(make: Callable[[], Any]) -> Any:
    """What a function returns, or None where it fails: an adapter that does not fit a class fails in any way."""
    try:
        return make()
    except Exception:
        return None


def _count(router: nn.Module, family: RouterFamily, available: Tensor | None) -> int:
    """E: what the router says where it chooses from more than experts, unless the mask covers those choices too."""
    if available is not None and available.numel() == family.width:
        return family.width
    stated = getattr(router, "num_experts", None)
    return stated if isinstance(stated, int) and 0 < stated < family.width else family.width


def _stock(router: nn.Module) -> nn.Module:
    """The router as an instance of transformers' class."""
    if not isinstance(router, SelectiveRouter):
        return router
    stock = router.stock_class.__new__(router.stock_class)
    stock.__dict__.update({k: v for k, v in router.__dict__.items() if k not in ("selection", "own", "stock_top_k")})
    if router.stock_top_k is not None:
        stock.__dict__["top_k"] = router.stock_top_k
    return stock


def _replacement(stock: nn.Module, adapter_class: type[SelectiveRouter], selection: Selection) -> SelectiveRouter:
    """An adapter that shares a stock router's tensors."""
    cls = _adapter_class(adapter_class, type(stock))  # type: ignore[arg-type]  # stub of nn.Module.__hash__
    adapter = cls.__new__(cls)
    # The registries of parameters, buffers and hooks are copied, so that loading one module does not write into the
    # other, while the tensors in them are shared.
    for name, value in stock.__dict__.items():
        adapter.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
    adapter.__dict__["stock_top_k"] = stock.__dict__.get("top_k")
    adapter.selection = selection
    return adapter


@functools.cache
def _adapter_class(adapter: type[SelectiveRouter], stock_class: type[nn.Module]) -> type[SelectiveRouter]:
    """One class per pair, so that ``type(a) is type(b)`` for the routers of a model."""
    name = f"Selective{stock_class.__name__}"
    return type(name, (adapter, stock_class), {"stock_class": stock_class, "__module__": __name__})

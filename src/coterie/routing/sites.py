"""Where a block routes: in its router module, or in a method of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from coterie.errors import UnsupportedError
from coterie.routing.families import (
    RouterFamily,
    adapt_router,
    examine,
    router_rows,
    select,
    unsupported,
)
from coterie.routing.locate import find_router
from coterie.routing.own_forward import OwnForward, OwnForwardRouter, SelectiveMethod
from coterie.routing.rehearsal import Rehearsal

_METHOD = "route_tokens_to_experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSupport:
    """What can be done about absent experts in one block; ``drop`` and ``error`` work in every block.

    Attributes:
        router_class: The class that routes: the router's, or the block's where a method of the block routes.
        family: How it chooses, in words, or None if it cannot be adapted.
        reason: Why not, as the end of a sentence on the class; None if it can be.
        experts_per_token: Whether another number of experts per token can be had.
        nearest: Whether experts can be compared by their router rows.
    """

    router_class: str
    family: str | None
    reason: str | None
    experts_per_token: bool
    nearest: bool

    @property
    def mask(self) -> bool:
        """Whether absent experts can be masked."""
        return self.family is not None


def routing_support(moe_block: nn.Module) -> RoutingSupport:
    """Says what can be done about absent experts in a block, on the meta device too.

    Args:
        moe_block: The parent of the experts module, such as ``model.layers[0].mlp``.
    """
    try:
        router = find_router(moe_block).module
    except UnsupportedError:
        return RoutingSupport(
            router_class=type(moe_block).__name__,
            family=None,
            reason="has no router that is known",
            experts_per_token=False,
            nearest=False,
        )
    by_block = _routes_itself(moe_block)
    found = _method_family(moe_block, router) if by_block else examine(router)
    family, reason = (found, None) if isinstance(found, RouterFamily) else (None, found)
    try:
        router_rows(router)
        nearest = True
    except UnsupportedError:
        nearest = False
    return RoutingSupport(
        router_class=_stock_name(moe_block if by_block else router),
        family=None if family is None else family.name,
        reason=reason,
        experts_per_token=family is not None and not family.fixed_top_k,
        nearest=nearest,
    )


def adapt_routing(
    moe_block: nn.Module,
    *,
    available: Tensor | None = None,
    experts_per_token: int | None = None,
    purpose: str = "Masking experts or changing the experts per token",
) -> None:
    """Lets a block choose among the available experts only; its class is not changed.

    Args:
        moe_block: The parent of the experts module.
        available: bool [E], or None if all experts are.
        experts_per_token: How many experts a token gets instead of the model's own number.
        purpose: Named in the error for blocks that cannot be adapted.

    Raises:
        UnsupportedError: If there is no adapter for what routes.
        UsageError: As in :func:`coterie.routing.adapt_router`.
    """
    slot = find_router(moe_block)
    if not _routes_itself(moe_block):
        adapted = adapt_router(slot.module, available=available, experts_per_token=experts_per_token, purpose=purpose)
        setattr(moe_block, slot.attribute, adapted)
        return
    name = type(moe_block).__name__
    family = _method_family(moe_block, slot.module)
    if isinstance(family, str) or family.own is None:
        raise unsupported(name, str(family), purpose)
    selection = select(name, family, num_experts=family.width, available=available, experts_per_token=experts_per_token)
    moe_block.__dict__[_METHOD] = SelectiveMethod(moe_block, family.own, selection)


def method_that_routes(moe_block: nn.Module, router: nn.Module) -> tuple[OwnForward, Tensor | None] | None:
    """The method of a block that routes, given logits, and a mask [E] of those absent; None if the router routes."""
    if not _routes_itself(moe_block):
        return None
    adapted = moe_block.__dict__.get(_METHOD)
    if isinstance(adapted, SelectiveMethod):
        return adapted.own, adapted.selection.absent
    family = _method_family(moe_block, router)
    return None if isinstance(family, str) or family.own is None else (family.own, None)


def _routes_itself(moe_block: nn.Module) -> bool:
    return callable(getattr(type(moe_block), _METHOD, None))


def _stock_name(module: nn.Module) -> str:
    return getattr(module, "stock_class", type(module)).__name__


def _method_family(moe_block: nn.Module, router: nn.Module) -> RouterFamily | str:
    try:
        width = router_rows(router).shape[0]
    except UnsupportedError:
        return "has a router without a row for each expert"
    own = OwnForward.of(Rehearsal(moe_block, _METHOD, width))
    if isinstance(own, str):
        return own
    return RouterFamily(
        name=own.anatomy.family, adapter=OwnForwardRouter, width=own.anatomy.width, top_k=own.anatomy.top_k, own=own
    )

"""Which adapter fits which router class, and how a router is replaced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from coterie.errors import UnsupportedError, UsageError
from coterie.routing.always_norm import AlwaysNormRouter
from coterie.routing.availability import Availability
from coterie.routing.mixtral import MixtralRouter
from coterie.routing.optional_norm import OptionalNormRouter
from coterie.routing.selective import Selection, SelectiveRouter


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterFamily:
    """Router classes of transformers that compute the same thing.

    Attributes:
        name: Name of the family in messages.
        adapter: The forward that chooses among available experts.
        class_names: The transformers classes of this shape; matched exactly, never by substring.
    """

    name: str
    adapter: type[SelectiveRouter]
    class_names: frozenset[str]


FAMILIES = (
    RouterFamily(
        name="softmax, optional renormalisation",
        adapter=OptionalNormRouter,
        class_names=frozenset(
            {
                "FlexOlmoTopKRouter",
                "MellumTopKRouter",
                "OlmoeTopKRouter",
                "Qwen2MoeTopKRouter",
                "Qwen3MoeTopKRouter",
                "Qwen3NextTopKRouter",
                "Qwen3OmniMoeTalkerTextTopKRouter",
                "Qwen3OmniMoeThinkerTextTopKRouter",
            }
        ),
    ),
    RouterFamily(
        name="softmax, always renormalised",
        adapter=AlwaysNormRouter,
        class_names=frozenset(
            {"Qwen3OmniMoeTextTopKRouter", "Qwen3VLMoeTextTopKRouter", "Qwen3_5MoeTopKRouter"},
        ),
    ),
    RouterFamily(
        name="softmax, always renormalised, float32 weights",
        adapter=MixtralRouter,
        class_names=frozenset({"MiniMaxTopKRouter", "MixtralTopKRouter"}),
    ),
)
"""The supported families. Each class's unadapted output is compared bit for bit in the contract test."""

_BY_CLASS_NAME = {class_name: family for family in FAMILIES for class_name in family.class_names}


def router_family(module: nn.Module) -> RouterFamily | None:
    """The family of a router module (stock or adapted already), or None if it has no adapter."""
    stock_class = module.stock_class if isinstance(module, SelectiveRouter) else type(module)
    return _BY_CLASS_NAME.get(stock_class.__name__)


def require_family(module: nn.Module, *, purpose: str) -> RouterFamily:
    """The family of a router module.

    Args:
        module: The router.
        purpose: What needs it, such as ``missing='mask'``; named in the error.

    Raises:
        UnsupportedError: If the router's class has no adapter.
    """
    family = router_family(module)
    if family is None:
        raise UnsupportedError(
            f"{purpose} is not supported for routers of class {type(module).__name__}.",
            advice=f"missing='drop' and missing='error' work for every model. Supported router classes: "
            f"{', '.join(sorted(_BY_CLASS_NAME))}.",
            router_class=type(module).__name__,
            supported=tuple(sorted(_BY_CLASS_NAME)),
        )
    return family


def adapt_router(
    router: nn.Module,
    *,
    available: Tensor | None = None,
    experts_per_token: int | None = None,
    purpose: str = "Masking experts or changing the experts per token",
) -> nn.Module:
    """Makes the replacement of a router that chooses among the available experts only.

    Args:
        router: A router of a supported family; on the meta device too. It is not changed.
        available: bool [E], or None if all experts are. With all of them available the output is bit-equal to stock.
        experts_per_token: How many experts a token gets instead of the model's own number.
        purpose: What the adapter is wanted for; named in the error for unsupported routers.

    Returns:
        An instance of a subclass of the router's class with the same parameters, buffers, hooks and attributes, under
        the same names. What masking means is described in :mod:`coterie.routing.selective`.

    Raises:
        UnsupportedError: If the router's class has no adapter.
        UsageError: If ``experts_per_token`` is not in 1..E, or ``available`` is not a bool [E].
    """
    family = require_family(router, purpose=purpose)
    num_experts = int(cast(int, router.num_experts))
    top_k = int(cast(int, router.top_k)) if experts_per_token is None else experts_per_token
    if not 1 <= top_k <= num_experts:
        raise UsageError(
            f"experts_per_token must be between 1 and {num_experts}, the experts of a layer, not {top_k}.",
            got=top_k,
            num_experts=num_experts,
        )
    if available is None:
        available = torch.ones(num_experts, dtype=torch.bool, device="cpu")
    state = Availability(num_experts=num_experts, top_k=top_k, available=available.to("cpu", copy=True))

    stock_class = router.stock_class if isinstance(router, SelectiveRouter) else type(router)
    adapter_class = _adapter_class(family.adapter, stock_class)  # type: ignore[arg-type]  # stub of nn.Module.__hash__
    adapter = adapter_class.__new__(adapter_class)
    # The registries of parameters, buffers and hooks are copied, so that loading one module does not write into the
    # other, while the tensors in them are shared.
    for name, value in router.__dict__.items():
        adapter.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
    adapter.top_k = top_k
    adapter.selection = Selection(
        top_k=top_k,
        used=min(top_k, state.count),
        num_experts=num_experts,
        absent=None if state.complete else ~state.available,
    )
    return adapter


def router_rows(router: nn.Module) -> Tensor:
    """The router's row of each expert.

    Args:
        router: A router of a supported family.

    Returns:
        [E, H], the parameter itself.

    Raises:
        UnsupportedError: If the router's class has no adapter.
    """
    require_family(router, purpose="Comparing experts by their router rows (missing='nearest')")
    return cast(Tensor, router.weight)


@cache
def _adapter_class(adapter: type[SelectiveRouter], stock_class: type[nn.Module]) -> type[SelectiveRouter]:
    """One class per pair, so that ``type(a) is type(b)`` for the routers of a model."""
    name = f"Selective{stock_class.__name__}"
    return type(name, (adapter, stock_class), {"stock_class": stock_class, "__module__": __name__})

"""The adapter for most classes: the class's own forward, with the choice inside it replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from coterie.routing.anatomy import Anatomy, anatomy_of
from coterie.routing.choice import Choice
from coterie.routing.rehearsal import Rehearsal
from coterie.routing.selective import Selection, SelectiveRouter

_SCALE_BY_TOP_K = frozenset({"OpenAIPrivacyFilterTopKRouter"})
"""Classes that divide by ``top_k`` what their block multiplies by its own copy of it: theirs must stay as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnForward:
    """How a method that routes is run with another choice.

    Attributes:
        function: The method of the class.
        anatomy: How it chooses.
        ids: Position of the ids [T, K] among its results, or None if it does not give them in this shape.
        weights: Position of the weights [T, K], likewise.
        sets_top_k: Whether ``self.top_k`` must be the number of experts that are chosen while it runs.
    """

    function: Callable[..., Any]
    anatomy: Anatomy
    ids: int | None
    weights: int | None
    sets_top_k: bool

    @classmethod
    def of(cls, rehearsal: Rehearsal) -> OwnForward | str:
        """Looks at a method; why it cannot be run with another choice, as the end of a sentence on its class."""
        try:
            anatomy = anatomy_of(rehearsal.steps())
        except Exception as error:  # whatever a class of another release does with arguments that it does not expect
            return f"cannot be run by itself ({type(error).__name__}: {error})"
        if isinstance(anatomy, str):
            return anatomy
        owner = rehearsal.owner
        sets_top_k = "top_k" in owner.__dict__ and type(owner).__name__ not in _SCALE_BY_TOP_K
        # With another number of experts, those results that have one column per chosen expert become visible.
        other = anatomy.top_k - 1 if anatomy.top_k > 1 else anatomy.top_k + 1
        if other > anatomy.width:
            return "has a single expert to choose from"
        # Neither the first nor the last: their ids are what zeros and padding give by themselves.
        everyone = torch.arange(anatomy.width, device="cpu")
        absent = (everyone < 1) | (everyone > other) if other < anatomy.width else None
        selection = Selection(top_k=other, used=other, num_experts=anatomy.width, absent=absent)
        before = rehearsal.run()
        if sets_top_k:
            owner.__dict__["top_k"] = other
        after = rehearsal.run(Choice(anatomy, selection))
        if sets_top_k:
            owner.__dict__["top_k"] = anatomy.top_k
        columns = _columns(before, after, anatomy.top_k, other)
        ids = [i for i in columns if not after[i].is_floating_point()]
        weights = [i for i in columns if after[i].is_floating_point()]
        if len(ids) != len(weights) or len(ids) > 1:
            return "gives ids and weights in a way that is not known"
        if absent is not None and ids and bool(absent[after[ids[0]]].any()):
            return "gives other ids than those of its top-k"
        return cls(
            function=rehearsal.function,
            anatomy=anatomy,
            ids=next(iter(ids), None),
            weights=next(iter(weights), None),
            sets_top_k=sets_top_k,
        )

    def __call__(self, owner: nn.Module, selection: Selection, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Routes; the result has K columns, of which those without an expert hold the sentinel and weight 0."""
        if selection.absent is None and selection.used == self.anatomy.top_k:
            return self.function(owner, *args, **kwargs)
        with Choice(self.anatomy, selection) as choice:
            result = choice.of_all_experts(self.function(owner, *args, **kwargs))
        empty = selection.top_k - selection.used
        if empty == 0 or self.ids is None or self.weights is None:
            return result
        values = list(result)
        values[self.ids] = pad(values[self.ids], (0, empty), value=selection.num_experts)
        values[self.weights] = pad(values[self.weights], (0, empty), value=0.0)
        return tuple(values)


class OwnForwardRouter(SelectiveRouter):
    """Any class whose choice is a top-k: see :mod:`coterie.routing.choice`.

    Attributes:
        own: The class's forward and where it chooses.
    """

    own: OwnForward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the class's forward gives, chosen among available experts."""
        return self.own(self, self.selection, args, kwargs)


class SelectiveMethod:
    """Takes the place of a block's ``route_tokens_to_experts``, on the instance.

    Args:
        block: The block.
        own: Its class's method.
        selection: Who may be chosen.
    """

    def __init__(self, block: nn.Module, own: OwnForward, selection: Selection) -> None:
        self.block = block
        self.own = own
        self.selection = selection

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Routes."""
        return self.own(self.block, self.selection, args, kwargs)


def _columns(before: Any, after: Any, top_k: int, other: int) -> list[int]:
    """Positions of the results [..., K] whose last size follows the number of chosen experts."""
    if not isinstance(before, tuple) or not isinstance(after, tuple):
        return []
    return [
        i
        for i, (a, b) in enumerate(zip(before, after, strict=True))
        if isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.ndim > 1
        and (a.shape[-1], b.shape[-1]) == (top_k, other)
    ]

"""Replacing the choice inside a router's own forward.

The class's forward runs as it is. While it does, the calls of torch that make the choice get other scores: those of
absent experts are excluded, and as many experts are taken as there are to take. Everything before and after, how scores
are formed and how weights are made of them, stays the class's own arithmetic.

**Groups.** Some routers first pick the best groups of experts, scored by their best one or the sum of their best two
experts, and then choose within these. Under a mask an absent expert adds nothing to its group's score, and a group of
which nothing is left is picked last. Should the groups that were picked hold fewer than K available experts, the
best available experts of the other groups take the slots that are left: a slot stays empty only if no expert is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from coterie.routing.anatomy import Anatomy
from coterie.routing.selective import Selection
from coterie.routing.steps import step_name


class Choice(TorchFunctionMode):
    """Chooses among available experts while it is entered; made anew for every forward.

    Args:
        anatomy: Where in the forward the choice is made.
        selection: Who may be chosen, and how many.
    """

    def __init__(self, anatomy: Anatomy, selection: Selection) -> None:
        super().__init__()
        self._anatomy = anatomy
        self._used = selection.used
        self._absent = selection.absent
        self._topks = 0
        self._ungrouped_TE: Tensor | None = None
        self._groups_TG: Tensor | None = None
        self._probabilities: Tensor | None = None
        self._masked: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Makes the call, with other scores if it is part of the choice."""
        kwargs = kwargs or {}
        name = step_name(func)
        if name == "topk":
            self._topks += 1
            if self._topks == self._anatomy.topk_calls:
                return self._choose(*args, **kwargs)
            if self._absent is not None:
                return self._group_topk(*args, **kwargs)
        elif self._absent is not None and self._topks < self._anatomy.topk_calls:
            if name == "softmax" and self._anatomy.renormalises and args[0].shape[-1] == self._anatomy.width:
                self._probabilities = func(*args, **kwargs)
                self._masked = func(args[0].masked_fill(self._absent_on(args[0]), -torch.inf), *args[1:], **kwargs)
                return self._masked
            if name == "max" and args[0].ndim == 3 and self._anatomy.grouped:
                return func(self._in_groups(args[0]), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def of_all_experts(self, results: Any) -> Any:
        """Results of the forward, with probabilities over all experts if it gives those."""
        if self._masked is None or not isinstance(results, tuple):
            return results
        return tuple(self._probabilities if result is self._masked else result for result in results)

    def _absent_on(self, scores: Tensor) -> Tensor:
        assert self._absent is not None
        return self._absent.to(scores.device)

    def _in_groups(self, scores_TGN: Tensor) -> Tensor:
        """Scores by group without those of absent experts; the scores themselves are kept for the choice."""
        self._ungrouped_TE = scores_TGN.flatten(1)
        return scores_TGN.masked_fill(self._absent_on(scores_TGN).view(scores_TGN.shape[1:]), -torch.inf)

    def _group_topk(self, scores: Tensor, *args: Any, **kwargs: Any) -> Any:
        if scores.ndim == 3:
            best = torch.topk(self._in_groups(scores), *args, **kwargs)
            # Only a group of which nothing is left may have a score of minus infinity.
            best.values[..., 1:].masked_fill_(best.values[..., 1:] == -torch.inf, 0.0)
            return best
        picked = torch.topk(scores, *args, **kwargs)
        self._groups_TG = picked.indices
        return picked

    def _choose(self, scores: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
        if self._absent is None:
            return torch.topk(scores, self._used, dim=dim, largest=largest, sorted=sorted)
        if self._groups_TG is not None and self._ungrouped_TE is not None:
            return self._choose_in_groups(scores, self._ungrouped_TE, self._groups_TG)
        masked = scores.masked_fill(self._absent_on(scores), -torch.inf)
        return torch.topk(masked, self._used, dim=dim, largest=largest, sorted=sorted)

    def _choose_in_groups(self, scores_TE: Tensor, ungrouped_TE: Tensor, groups_TG: Tensor) -> Any:
        allowed_TE = ~self._absent_on(scores_TE).expand_as(scores_TE)
        size = self._anatomy.width // self._anatomy.groups
        picked_TG = torch.zeros(
            (len(scores_TE), self._anatomy.groups), dtype=torch.bool, device=scores_TE.device
        ).scatter(1, groups_TG, True)
        picked_TE = picked_TG.repeat_interleave(size, dim=1) & allowed_TE
        inside = torch.topk(ungrouped_TE.masked_fill(~picked_TE, -torch.inf), self._used, dim=-1)
        filled_T1 = picked_TE.sum(-1, keepdim=True).clamp(max=self._used)
        if bool((filled_T1 == self._used).all()):
            return inside
        outside = torch.topk(ungrouped_TE.masked_fill(picked_TE | ~allowed_TE, -torch.inf), self._used, dim=-1)
        slot_TK = torch.arange(self._used, device=scores_TE.device).expand_as(inside.indices)
        behind_TK = (slot_TK - filled_T1).clamp(min=0)
        from_inside_TK = slot_TK < filled_T1
        return torch.return_types.topk(
            (
                torch.where(from_inside_TK, inside.values, outside.values.gather(1, behind_TK)),
                torch.where(from_inside_TK, inside.indices, outside.indices.gather(1, behind_TK)),
            )
        )

"""Stock models of the undecorated classes, whose routing is changed from outside as the policies say it should be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers import PreTrainedModel

Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(ids [T, K], weights [T, K]) → the same after a policy; an id may occur twice."""

_TAKE_IDS = ("DbrxExperts", "LongcatFlashExperts", "Step3p7Experts")


def mask_in_stock(model: PreTrainedModel, available: Tensor) -> PreTrainedModel:
    """Lets a stock model choose among available experts: the scores of all others are minus infinity."""
    for module in model.modules():
        kind = type(module).__name__
        if kind in ("LongcatFlashTopkRouter", "Step3p7TopKRouter"):  # the bias counts for the choice only
            module.e_score_correction_bias.masked_fill_(~available, -torch.inf)
        elif kind in ("DbrxRouter", "JetMoeTopKGating"):
            inner = module.layer
            inner.register_forward_hook(lambda _, args, scores: scores.masked_fill(~available, -torch.inf))
        elif kind == "Llama4Router":
            module.forward = functools.partial(_llama4_router, module, available)
        elif kind == "SwitchTransformersTop1Router":
            _mask_switch(module, available)
    return model


def _llama4_router(router: nn.Linear, available: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    raw = torch.nn.functional.linear(hidden, router.weight)
    best = raw.masked_fill(~available, -torch.inf).topk(router.top_k, dim=1)
    return torch.full_like(raw, -torch.inf).scatter_(1, best.indices, best.values).sigmoid(), raw


def _mask_switch(router: nn.Module, available: Tensor) -> None:
    """The best available expert, with its probability among all of them."""
    raw: list[Tensor] = []

    def masked(_: Any, args: Any, scores: Tensor) -> Tensor:
        raw[:] = [scores]
        return scores.masked_fill(~available, -torch.inf)

    def weighted(_: Any, args: Any, output: Any) -> Any:
        chosen, _, scores = output
        probabilities = raw[0].softmax(-1) * available
        return chosen, probabilities.amax(-1, keepdim=True), scores

    router.classifier.register_forward_hook(masked)
    router.register_forward_hook(weighted)


def dropped(available: Tensor) -> Change:
    """Absent experts get weight 0, the others the sum that all had."""

    def change(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        kept = weights * available[ids]
        left = kept.sum(-1, keepdim=True)
        return ids, torch.where(left == 0, 0, kept * weights.sum(-1, keepdim=True) / left.masked_fill(left == 0, 1))

    return change


def replaced(rows: Tensor, available: Tensor) -> Change:
    """Absent experts are replaced by the available one whose router row has the largest cosine with theirs."""
    table = list(range(len(available)))
    for absent in (~available).nonzero().flatten().tolist():
        cosines = {e: torch.cosine_similarity(rows[absent], rows[e], dim=0).item() for e in table if available[e]}
        table[absent] = max(cosines, key=lambda e: cosines[e])
    lookup = torch.tensor(table)
    return lambda ids, weights: (lookup[ids], weights)


def change_in_stock(model: PreTrainedModel, make: Callable[[Tensor], Change]) -> PreTrainedModel:
    """Changes what each router of a stock model has chosen, wherever its class decides on it.

    Args:
        model: The model.
        make: Makes the change for a router, given its rows [E, D].
    """
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind in _TAKE_IDS or kind == "SwitchTransformersExperts":
            block = model.get_submodule(path.rpartition(".")[0])
            router = block.gate if hasattr(block, "gate") else block.router
            change = make(next(p for p in router.parameters() if p.ndim == 2))
            module.register_forward_pre_hook(functools.partial(_of_arguments, change, kind))
        elif kind == "Llama4Router":
            module.register_forward_hook(functools.partial(_of_scores, make(module.weight)))
        elif kind == "JetMoeTopKGating":
            module.register_forward_hook(functools.partial(_of_groups, make(module.layer.weight)))
    return model


def _of_arguments(change: Change, kind: str, _: Any, args: Any) -> Any:
    hidden, ids, weights = args
    if kind in _TAKE_IDS:
        return hidden, *change(ids, weights)
    # Switch: a mask [T, 1, E]; a token beyond an expert's capacity has none, and none stands in for it.
    ids_T1, weights_T1 = change(ids.argmax(-1), weights)
    kept = ids.any(-1, keepdim=True) & (weights_T1 != 0)[..., None]
    return hidden, one_hot(ids_T1, ids.shape[-1]) * kept, weights_T1


def _of_scores(change: Change, router: Any, _: Any, output: Any) -> Any:
    scores, raw = output
    best = raw.topk(router.top_k, dim=1).indices
    ids, weights = change(best, scores.gather(1, best))
    return torch.zeros_like(scores).scatter_add_(1, ids, weights), raw


def _of_groups(change: Change, router: Any, _: Any, output: Any) -> Any:
    raw = output[4]
    best = raw.topk(router.top_k, dim=1)
    ids, weights = change(best.indices, best.values.softmax(dim=1))
    order = ids.flatten().argsort(stable=True)
    sizes = ids.flatten().bincount(minlength=raw.shape[1]).tolist()
    return order, order // ids.shape[1], weights.flatten()[order], sizes, raw

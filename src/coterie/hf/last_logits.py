"""Which classes compute the logits of a prompt's last position alone, as ``generate`` reads no others.

A forward that takes ``logits_to_keep`` does it by itself. Others multiply every position by their output head; of some
of these the head can be given less.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from coterie.hf.releases import broken

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONTRACT = "generation asks for the last logits"
PARAMETER = "logits_to_keep"
"""How ``generate``, or whoever calls a forward, says how many positions it wants the logits of."""
_HEAD = "lm_head"


def takes_parameter(model_class: type[PreTrainedModel]) -> bool:
    """Whether the class's own forward takes ``logits_to_keep``."""
    return PARAMETER in inspect.signature(model_class.forward).parameters


def can_be_given(model_class: type[PreTrainedModel]) -> bool:
    """Whether a forward that lacks the parameter can be given it.

    It can where transformers' own ``generate`` runs it, which then passes the parameter and reads only what it asked
    for; and where the logits come of an ``lm_head``, one row of each position. A class that writes many tokens at once
    has a ``generate`` of its own; one that speaks or classifies has another head.
    """
    from transformers import GenerationMixin

    own: Any = model_class
    if takes_parameter(own) or getattr(own, "generate", None) is not GenerationMixin.generate:
        return False
    return any(str(name).startswith(_HEAD) for name in getattr(own, "_tied_weights_keys", None) or ())


def makes_all(model_class: type[PreTrainedModel]) -> bool:
    """Whether the class computes the logits of every position of a prompt, whatever is done."""
    return not takes_parameter(model_class) and not can_be_given(model_class)


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that makes logits of a model's last hidden states, or None if it has none that is known."""
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    return head if isinstance(head, nn.Module) else None


def head_to_narrow(model: nn.Module) -> nn.Module | None:
    """The head of a model whose forward is to be given the parameter; None where nothing is to be done.

    Raises:
        ContractError: If the class has such a head and this model has not: the budget counts on it.
    """
    own: Any = type(model)
    if not can_be_given(own):
        return None
    head = output_head(model)
    if head is None:
        raise broken(CONTRACT, f"A {own.__name__} has no {_HEAD}.")
    return head


def changed_after_head(config: Any) -> Callable[[Tensor], Tensor]:
    """What a class makes of its head's logits, as far as its configuration says: Granite, Cohere, Gemma.

    Args:
        config: The model's.
    """
    text = config.get_text_config()
    cap = getattr(text, "final_logit_softcapping", None)
    divisor = getattr(text, "logits_scaling", None)
    factor = getattr(text, "logit_scale", None)

    def change(logits: Tensor) -> Tensor:
        if divisor:
            logits = logits / divisor
        if factor:
            logits = logits * factor
        return torch.tanh(logits / cap) * cap if cap else logits

    return change

"""Has transformers call Coterie's way of grouped-query attention for the models that Coterie opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coterie.kernels import GroupedAttention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "sdpa"


def share_keys_and_values(model: PreTrainedModel) -> None:
    """Has transformers compute the grouped-query attention of a model without copies, where it does so by ``sdpa``.

    Args:
        model: A skeleton or a model.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ALL_ATTENTION_FUNCTIONS[_NAME]
    if not isinstance(known, GroupedAttention):
        if not hasattr(known, "__code__"):
            return  # somebody else's, which may do anything
        known = ALL_ATTENTION_FUNCTIONS[_NAME] = GroupedAttention(known)
    known.serve(model)

"""Which of the hidden states of a pass are kept: all of them take as much memory as the layers' activations."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_OPTION = "output_hidden_states"


def keep_states_of(layers: Collection[int], kwargs: dict[str, Any]) -> None:
    """Has passes return the hidden states of some layers alone, under the same numbers as those of all.

    Older releases cannot be asked for that: with them passes go on to return all of them.

    Args:
        layers: Numbers of hidden states, 0 for what goes into the first layer.
        kwargs: What passes are called with, that they return hidden states included.
    """
    if kwargs.get(_OPTION) is not True:
        return
    try:
        from transformers.utils.output_capturing import selected_hidden_states
    except ImportError:
        return
    chosen = sorted(layers)
    if selected_hidden_states(chosen) == chosen:
        kwargs[_OPTION] = chosen

"""Every expert of a model in memory before anything is timed, where there is room for all of them."""

from __future__ import annotations

from typing import Any


def read_all_experts(runtime: Any) -> None:
    """Reads what is not in memory yet.

    Args:
        runtime: Of the model.
    """
    from coterie.cache import Consumer

    for bank in runtime.banks:
        keys = [key for key in runtime.source.experts.keys() if key.bank_key == bank]
        with runtime.cache.lease(keys, consumer=Consumer()) as lease:
            for _ in lease:
                pass

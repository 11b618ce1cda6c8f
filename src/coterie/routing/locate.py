"""Finding the router that belongs to a bank of experts."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from coterie.errors import UnsupportedError

_ATTRIBUTES = ("gate", "router")


class RouterSlot(NamedTuple):
    """Where a block keeps its router.

    Attributes:
        attribute: ``gate`` or ``router``; assign to it to replace the router.
        module: The router.
    """

    attribute: str
    module: nn.Module


def find_router(moe_block: nn.Module) -> RouterSlot:
    """The router of a block that holds a bank of experts.

    Args:
        moe_block: The parent of the experts module, such as ``model.layers[0].mlp``.

    Raises:
        UnsupportedError: If the block has no child named ``gate`` or ``router``, or both.
    """
    children = dict(moe_block.named_children())
    found = [name for name in _ATTRIBUTES if name in children]
    if len(found) != 1:
        what = "two candidates for a router, 'gate' and 'router'" if found else "no router named 'gate' or 'router'"
        raise UnsupportedError(
            f"{type(moe_block).__name__} has {what}; its children are {', '.join(children) or 'none'}.",
            advice="missing='drop' and missing='error' work for every model.",
            block_class=type(moe_block).__name__,
        )
    return RouterSlot(found[0], children[found[0]])

"""What an adapter is given and what it must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from coterie.kernels import StackedProduct, TokenKernel
from coterie.passes.bank import StreamedBank


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSite:
    """Where an adapter works.

    Attributes:
        streamed: The bank's experts.
        module: The module that holds them, still with its parameters on the meta device.
        block: The module that has the router; ``module`` itself or the one around it.
        parent: The module that ``module`` is a child of.
        token_kernel: Makes :class:`TokenKernel`, or gives one that was made for the same arguments.
        stacked_product: Makes :class:`StackedProduct`, likewise.
    """

    streamed: StreamedBank
    module: nn.Module
    block: nn.Module
    parent: nn.Module
    token_kernel: Callable[..., TokenKernel]
    stacked_product: Callable[..., StackedProduct]


class Adapter(Protocol):
    """Computes what a class of transformers computes, bit for bit, asking only for the experts that are routed to.

    Making one takes the experts' parameters out of the module and puts the adapter's own ``forward`` on an instance.
    That forward looks at :attr:`StreamedBank.now` and calls :meth:`StreamedBank.route` once, leases what is left of its
    choice, adds the experts' outputs in the class's own order, and calls :meth:`StreamedBank.served` once. It is called
    by several threads at a time.
    """

    def __init__(self, site: AdapterSite) -> None:
        """Takes the experts out of ``site.module``."""
        ...

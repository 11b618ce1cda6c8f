"""The transformers plug-in: streamed banks in place of stacked experts, router replacement, guards."""

from coterie.integration.attach import Attachment
from coterie.integration.guards import install_guards
from coterie.integration.linear import QuantisedLinear, QuantisedLinears, round_as_stock
from coterie.integration.norms import quicken_norms
from coterie.integration.quantizer import StreamingConfig, forget, register
from coterie.integration.token_forwards import quicken_tokens
from coterie.integration.token_layer import TokenLayer

__all__ = [
    "Attachment",
    "QuantisedLinear",
    "QuantisedLinears",
    "StreamingConfig",
    "TokenLayer",
    "forget",
    "install_guards",
    "quicken_norms",
    "quicken_tokens",
    "register",
    "round_as_stock",
]

"""The transformers plug-in: streamed banks in place of stacked experts, router replacement, guards."""

from coterie.integration.admission import let_go_after_failure
from coterie.integration.attach import Attachment
from coterie.integration.bank import BankCounters, StreamedBank
from coterie.integration.governor import Verdict
from coterie.integration.guards import install_guards
from coterie.integration.limit import ExpertLimit
from coterie.integration.linear import QuantisedLinear, QuantisedLinears, round_as_stock
from coterie.integration.logits_room import LogitsRoom
from coterie.integration.missing import Missing, check_missing
from coterie.integration.neighbours import process_neighbours
from coterie.integration.norms import quicken_norms
from coterie.integration.quantizer import StreamingConfig, forget, register
from coterie.integration.token_forwards import quicken_tokens
from coterie.integration.token_layer import TokenLayer

__all__ = [
    "Attachment",
    "BankCounters",
    "ExpertLimit",
    "LogitsRoom",
    "Missing",
    "QuantisedLinear",
    "QuantisedLinears",
    "StreamedBank",
    "StreamingConfig",
    "TokenLayer",
    "Verdict",
    "check_missing",
    "forget",
    "install_guards",
    "let_go_after_failure",
    "process_neighbours",
    "quicken_norms",
    "quicken_tokens",
    "register",
    "round_as_stock",
]

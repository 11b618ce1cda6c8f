"""The forward pass: which one is going on, whose forwards it runs through, and what it asks the cache for."""

from coterie.passes.admission import let_go_after_failure
from coterie.passes.bank import BankCounters, StreamedBank
from coterie.passes.limit import ExpertLimit
from coterie.passes.logits_room import LogitsRoom
from coterie.passes.neighbours import process_neighbours
from coterie.passes.trial import Verdict

__all__ = [
    "BankCounters",
    "ExpertLimit",
    "LogitsRoom",
    "StreamedBank",
    "Verdict",
    "let_go_after_failure",
    "process_neighbours",
]

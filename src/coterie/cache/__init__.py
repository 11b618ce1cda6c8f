"""Residency and I/O: experts in memory under a byte budget, read from any :class:`~coterie.spec.ExpertSource`."""

from coterie.cache.arena import Slot, SlotArena
from coterie.cache.bank_view import BankView, Held
from coterie.cache.cache import ExpertCache, Lease
from coterie.cache.claims import Tensors
from coterie.cache.consumer import Consumer
from coterie.cache.early_memory import EarlyMemory
from coterie.cache.snapshot import Snapshot
from coterie.cache.statistics import CacheStats, LeaseStats, ReadTimes

__all__ = [
    "BankView",
    "CacheStats",
    "Consumer",
    "EarlyMemory",
    "ExpertCache",
    "Held",
    "Lease",
    "LeaseStats",
    "ReadTimes",
    "Slot",
    "SlotArena",
    "Snapshot",
    "Tensors",
]

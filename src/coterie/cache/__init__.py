"""Residency and I/O: experts in memory under a byte budget, read from any :class:`~coterie.spec.ExpertSource`."""

from coterie.cache.arena import SlotArena
from coterie.cache.bank_view import BankView
from coterie.cache.cache import ExpertCache
from coterie.cache.consumer import Consumer
from coterie.cache.lease import Held, Lease, Tensors
from coterie.cache.outstanding import ReadTimes
from coterie.cache.slots import Slot
from coterie.cache.snapshot import Snapshot
from coterie.cache.statistics import CacheStats, LeaseStats

__all__ = [
    "BankView",
    "CacheStats",
    "Consumer",
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

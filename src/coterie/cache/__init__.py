"""Residency and I/O: experts in memory under a byte budget, read from any :class:`~coterie.spec.ExpertSource`."""

from coterie.cache.arena import SlotArena
from coterie.cache.cache import ExpertCache
from coterie.cache.lease import Held, Lease, Tensors
from coterie.cache.outstanding import ReadTimes
from coterie.cache.reads import RecordReader
from coterie.cache.shelf import Shelf
from coterie.cache.slots import Slot
from coterie.cache.statistics import CacheStats, LeaseStats

__all__ = [
    "CacheStats",
    "ExpertCache",
    "Held",
    "Lease",
    "LeaseStats",
    "ReadTimes",
    "RecordReader",
    "Shelf",
    "Slot",
    "SlotArena",
    "Tensors",
]

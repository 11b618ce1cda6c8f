"""The memory of the cache: slots of several sizes that share one byte budget."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import heapq
import mmap
import sys
from math import prod
from typing import Protocol

import torch

from coterie.errors import MemoryBudgetError
from coterie.plan.huge_pages import HUGE_PAGE
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.spec import RECORD_ALIGNMENT, RecordLayout, format_bytes, round_up

# Not every Python names it; 0x4000 is its value on x86-64 and aarch64 Linux.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

KERNEL_TAKES_PAGES_BACK = sys.platform == "linux" and hasattr(mmap.mmap, "madvise")
"""Whether MADV_DONTNEED frees memory at once. Elsewhere every slot is a mapping of its own and is unmapped."""


class Slot:
    """Memory for one record.

    Attributes:
        offset: Byte offset of the slot in its mapping.
        nbytes: Size of the slot, a multiple of 4096.
        index: Number of the slot among those of its size.
        record: The memory, writable.
    """

    __slots__ = ("_memory", "_views", "index", "nbytes", "offset", "record")

    def __init__(self, memory: mmap.mmap, offset: int, nbytes: int, index: int) -> None:
        self._memory = memory
        self.offset = offset
        self._views: dict[RecordLayout, tuple[torch.Tensor, ...]] = {}
        self.nbytes = nbytes
        self.index = index
        self.record = memoryview(memory)[offset : offset + nbytes]

    def views(self, layout: RecordLayout) -> tuple[torch.Tensor, ...]:
        """The fields of ``layout`` as tensors that share this slot's memory, in the layout's order.

        They are made once and show whatever record the slot holds. They keep its memory mapped while they live.
        """
        views = self._views.get(layout)
        if views is None:
            # Made in inference mode they could not be used outside it, and slots outlive the caller's mode.
            with torch.inference_mode(False):
                views = tuple(
                    self._view(TORCH_DTYPES[field.dtype], field.shape, field.offset) for field in layout.fields
                )
            self._views[layout] = views
        return views

    def _view(self, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        count = prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=self.offset + offset)
        return flat.view(shape)


class AddressRange:
    """Private anonymous memory whose ``start`` is aligned so that the kernel can back it with huge pages.

    Nothing is committed before it is written; it is unmapped with its last reference.
    """

    def __init__(self, nbytes: int) -> None:
        length = round_up(nbytes, mmap.PAGESIZE)
        if KERNEL_TAKES_PAGES_BACK:
            length += HUGE_PAGE
        try:
            self.memory = self._map(length)
        except (OSError, ValueError) as error:
            raise MemoryBudgetError(
                f"{format_bytes(length)} of address space for experts cannot be reserved: {error}.",
                advice="Lower the budget, or raise the address space limit (ulimit -v, vm.overcommit_memory).",
                budget=nbytes,
            ) from error
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.start = -base % HUGE_PAGE if KERNEL_TAKES_PAGES_BACK else 0

    def prefer_huge_pages(self, nbytes: int) -> None:
        """Has the first bytes be on huge pages where the kernel has them; what is beyond the last whole one is not."""
        whole = nbytes // HUGE_PAGE * HUGE_PAGE
        if whole:
            self.advise("MADV_HUGEPAGE", self.start, whole)

    @staticmethod
    def _map(length: int) -> mmap.mmap:
        if sys.platform == "win32":
            return mmap.mmap(-1, length)
        return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)

    def advise(self, name: str, start: int | None = None, length: int | None = None) -> None:
        """Gives the kernel the advice of that name where both know it; advice may be refused without harm."""
        option = getattr(mmap, name, None)
        if option is None or not hasattr(self.memory, "madvise"):
            return
        with contextlib.suppress(OSError):
            if start is None or length is None:
                self.memory.madvise(option)
            else:
                self.memory.madvise(option, start, length)


class FoundMemory(Protocol):
    """Addresses whose first bytes have memory already."""

    @property
    def addresses(self) -> AddressRange:
        """Where it is."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes from the first address on that may be used."""
        ...

    @property
    def found(self) -> int:
        """Of these, the first ones, that have memory."""
        ...


class Region:
    """All slots of one size.

    The lowest numbers are handed out first, so that the used ones stay together and huge pages commit little beyond
    them.
    """

    def __init__(self, nbytes: int, *, returnable: bool) -> None:
        self.nbytes = nbytes
        self._returnable = returnable
        self._slots: dict[int, Slot] = {}
        # Number of the first slot of each range, and the range; none where every slot is a mapping of its own.
        self._ranges: list[tuple[int, AddressRange]] = []
        self._end = 0
        self._fresh = 0
        self._committed: list[int] = []
        self._returned: list[int] = []
        self._fragmented = False

    @property
    def has_committed(self) -> bool:
        """Whether a free slot still has memory."""
        return bool(self._committed)

    def take_committed(self) -> Slot:
        """A free slot that has memory."""
        return self._slots[heapq.heappop(self._committed)]

    def take_uncommitted(self, limit: int) -> Slot:
        """A slot that has no memory yet; ``limit`` is the number of slots that the budget has room for in all."""
        index = self._returned[0] if self._returned else self._fresh
        slot = self._slots.get(index)
        if slot is None:
            # It may fail; then nothing has been taken.
            slot = self._slots[index] = self._make(index, limit)
        if self._returned:
            heapq.heappop(self._returned)
        else:
            self._fresh += 1
        return slot

    def put(self, slot: Slot) -> None:
        """Takes back a slot, which keeps its memory for the next record."""
        heapq.heappush(self._committed, slot.index)

    def adopt(self, memory: FoundMemory, most: int) -> int:
        """Begins with memory that was found, before there is any slot; returns how many slots have some.

        Args:
            memory: The memory. What is not used of it is given back.
            most: Slots that may have memory.
        """
        self._ranges.append((0, memory.addresses))
        self._end = memory.nbytes // self.nbytes
        self._fresh = min(memory.found // self.nbytes, most)
        self._slots = {index: self._make(index, most) for index in range(self._fresh)}
        self._committed = list(self._slots)
        used = round_up(self._fresh * self.nbytes, mmap.PAGESIZE)
        if memory.found > used:
            memory.addresses.advise("MADV_DONTNEED", memory.addresses.start + used, memory.found - used)
        return self._fresh

    def return_one(self) -> None:
        """Gives the memory of one free slot back to the kernel."""
        index = max(self._committed)
        self._committed.remove(index)
        heapq.heapify(self._committed)
        heapq.heappush(self._returned, index)
        if not self._returnable:
            del self._slots[index]
            return
        if not self._fragmented:
            # khugepaged would fill the hole again, outside the budget.
            self._fragmented = True
            for _, address_range in self._ranges:
                address_range.advise("MADV_NOHUGEPAGE")
        slot = self._slots[index]
        self._range_of(index)[1].memory.madvise(mmap.MADV_DONTNEED, slot.offset, self.nbytes)

    def discard_memory(self) -> None:
        """Gives all memory back; the address space goes with the last tensor that looks into it."""
        for _, address_range in self._ranges:
            address_range.advise("MADV_DONTNEED")

    def _make(self, index: int, limit: int) -> Slot:
        if not self._returnable:
            own = AddressRange(self.nbytes)
            return Slot(own.memory, own.start, self.nbytes, index)
        if index == self._end:
            self._extend(max(1, limit - self._end))
        first, address_range = self._range_of(index)
        return Slot(address_range.memory, address_range.start + (index - first) * self.nbytes, self.nbytes, index)

    def _range_of(self, index: int) -> tuple[int, AddressRange]:
        return next(each for each in reversed(self._ranges) if each[0] <= index)

    def _extend(self, count: int) -> None:
        address_range = AddressRange(count * self.nbytes)
        if not self._fragmented:
            address_range.prefer_huge_pages(count * self.nbytes)
        self._ranges.append((self._end, address_range))
        self._end += count


class SlotArena:
    """Hands out slots while their sizes add up to no more than the capacity.

    Memory is committed when a slot is first written, and returned when another size needs its bytes. What is
    committed stays within the capacity, but for the part of a huge page that reaches beyond the last used slot of a
    size (under 2 MiB for each size, and only where there are several). Not thread-safe: the cache's lock guards it.

    Args:
        capacity: Bytes.
        returnable: Whether MADV_DONTNEED frees memory; the default is what the platform does.

    Attributes:
        in_use: Bytes of the slots that are handed out.
        growing: Bytes of the slots that are being given memory apart from any record.
        committed: Bytes of the slots that have memory: handed out, growing or free.
        new_slots: Slots handed out so far that had no memory yet.
    """

    def __init__(self, capacity: int, *, returnable: bool = KERNEL_TAKES_PAGES_BACK) -> None:
        self.capacity = capacity
        self.in_use = 0
        self.growing = 0
        self.committed = 0
        self.new_slots = 0
        self._returnable = returnable
        self._regions: dict[int, Region] = {}

    def adopt(self, nbytes: int, memory: FoundMemory) -> None:
        """Begins with memory that was found already, for slots of ``nbytes``, as far as the capacity goes.

        To be called before anything else. What is found and not used is given back.
        """
        if self._returnable:
            self.committed = nbytes * self._region(nbytes).adopt(memory, self.capacity // nbytes)

    @staticmethod
    @functools.cache
    def slot_nbytes(record_nbytes: int) -> int:
        """Bytes of the slot for a record."""
        return round_up(record_nbytes, RECORD_ALIGNMENT)

    def acquire(self, nbytes: int) -> Slot | None:
        """A slot of ``nbytes`` (a multiple of 4096), or None while too much is in use."""
        if self.shortage(nbytes) > 0:
            return None
        region = self._region(nbytes)
        if region.has_committed:
            slot = region.take_committed()
        else:
            self._return_until(self.capacity - nbytes)
            slot = region.take_uncommitted(self.capacity // nbytes)
            self.committed += nbytes
            self.new_slots += 1
        self.in_use += nbytes
        return slot

    def release(self, slot: Slot) -> None:
        """Takes a slot back."""
        self._regions[slot.nbytes].put(slot)
        self.in_use -= slot.nbytes

    def shortage(self, nbytes: int) -> int:
        """Bytes that must be released before there is a slot of ``nbytes``; none if that is not positive."""
        return self.in_use + self.growing + nbytes - self.capacity

    def shortage_of_memory(self, nbytes: int) -> int:
        """Bytes that must be released before there is memory for a slot of ``nbytes`` that need not be new."""
        return self.in_use + self.growing + nbytes - self.committed

    def grow(self, nbytes: int) -> Slot | None:
        """A slot of ``nbytes`` that has no memory yet, for whoever gives it some; None if that would be too much.

        It is to be handed in to :meth:`grown` before anything else becomes of it.
        """
        if self.committed + nbytes > self.capacity:
            return None
        slot = self._region(nbytes).take_uncommitted(self.capacity // nbytes)
        self.committed += nbytes
        self.growing += nbytes
        return slot

    def grown(self, slot: Slot) -> None:
        """A slot of :meth:`grow` has memory: it is free."""
        self.growing -= slot.nbytes
        self._regions[slot.nbytes].put(slot)

    def resize(self, capacity: int) -> None:
        """Changes the capacity; free slots beyond it return their memory. What is in use may be more until released."""
        self.capacity = capacity
        self._return_until(capacity)

    def close(self, *, discard: bool) -> None:
        """Lets go of all memory.

        Args:
            discard: Free it at once, whoever still looks into it. Otherwise it goes with the last tensor.
        """
        if discard:
            for region in self._regions.values():
                region.discard_memory()
        self._regions.clear()
        self.in_use = self.growing = self.committed = 0

    def _region(self, nbytes: int) -> Region:
        region = self._regions.get(nbytes)
        if region is None:
            region = self._regions[nbytes] = Region(nbytes, returnable=self._returnable)
        return region

    def _return_until(self, target: int) -> None:
        for region in self._regions.values():
            while self.committed > target and region.has_committed:
                region.return_one()
                self.committed -= region.nbytes

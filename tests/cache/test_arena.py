"""Slots of several sizes under one budget, on the kernel's way of returning memory and on the fallback."""

import ctypes
import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.cache.arena import KERNEL_TAKES_PAGES_BACK, AddressRange, SlotArena
from coterie.errors import MemoryBudgetError
from coterie.plan.huge_pages import HUGE_PAGE, huge_page_nbytes, huge_pages_work

from .sources import SMALL

PAGE = 4096


def address(slot):
    return slot.views(SMALL)[0].data_ptr()


@pytest.mark.skipif(not KERNEL_TAKES_PAGES_BACK, reason="alignment is for huge pages")
def test_slots_are_packed_from_a_huge_page_boundary():
    arena = SlotArena(4 * SMALL.nbytes)
    slots = [arena.acquire(SMALL.nbytes) for _ in range(4)]
    assert address(slots[0]) % HUGE_PAGE == 0
    assert [address(slot) - address(slots[0]) for slot in slots] == [n * SMALL.nbytes for n in range(4)]


@pytest.mark.parametrize("returnable", [KERNEL_TAKES_PAGES_BACK, False])
class TestBudget:
    def test_it_hands_out_what_fits_and_no_more(self, returnable):
        arena = SlotArena(3 * PAGE, returnable=returnable)
        slots = [arena.acquire(PAGE) for _ in range(3)]
        assert len({slot.index for slot in slots}) == 3
        assert arena.acquire(PAGE) is None
        arena.release(slots[1])
        assert arena.acquire(PAGE) is slots[1]

    def test_another_size_gets_the_bytes_that_one_gave_back(self, returnable):
        arena = SlotArena(4 * PAGE, returnable=returnable)
        slots = [arena.acquire(PAGE) for _ in range(4)]
        for slot in slots:
            slot.record[:] = b"x" * PAGE
        assert arena.acquire(2 * PAGE) is None
        for slot in slots[:2]:
            arena.release(slot)
        large = arena.acquire(2 * PAGE)
        assert len(large.record) == 2 * PAGE
        assert arena.in_use == arena.committed == 4 * PAGE
        arena.release(large)
        again = arena.acquire(PAGE)
        # Its old memory went back to the kernel.
        assert bytes(again.record) == bytes(PAGE)
        assert bytes(slots[2].record) == b"x" * PAGE

    @given(data=st.data())
    def test_used_and_committed_bytes_stay_within_it(self, returnable, data):
        capacity = data.draw(st.integers(1, 12)) * PAGE
        arena = SlotArena(capacity, returnable=returnable)
        used = []
        for _ in range(data.draw(st.integers(0, 30))):
            size = data.draw(st.sampled_from([1, 2, 3])) * PAGE
            slot = arena.acquire(size) if data.draw(st.booleans()) else None
            if slot is not None:
                slot.record[:8] = len(used).to_bytes(8, "little")
                used.append((slot, slot.record[:8].tobytes()))
            elif used:
                arena.release(used.pop(data.draw(st.integers(0, len(used) - 1)))[0])
            assert arena.in_use == sum(slot.nbytes for slot, _ in used)
            assert arena.in_use <= arena.committed <= capacity
            assert all(slot.record[:8] == mark for slot, mark in used)


def test_room_that_a_grown_source_needs_is_mapped_when_asked_for():
    arena = SlotArena(PAGE)
    first = arena.acquire(PAGE)
    first.record[:1] = b"a"
    arena.capacity = 3 * PAGE
    others = [arena.acquire(PAGE), arena.acquire(PAGE)]
    others[0].record[:1] = b"b"
    assert first.record[:1] == b"a"
    assert arena.acquire(PAGE) is None


@pytest.mark.skipif(not KERNEL_TAKES_PAGES_BACK, reason="reserves nothing ahead")
def test_address_space_beyond_memory_costs_nothing_until_used():
    arena = SlotArena(2**40)
    slot = arena.acquire(PAGE)
    slot.record[:] = b"x" * PAGE
    assert arena.committed == PAGE


def test_address_space_that_cannot_be_had_is_an_error_with_advice():
    with pytest.raises(MemoryBudgetError, match="Lower the budget"):
        AddressRange(2**62)


@pytest.mark.parametrize("returnable", [KERNEL_TAKES_PAGES_BACK, False])
def test_closing_unmaps_everything(returnable):
    arena = SlotArena(4 * SMALL.nbytes, returnable=returnable)
    slot = arena.acquire(SMALL.nbytes)
    slot.views(SMALL)
    memory = weakref.ref(slot.record.obj)
    arena.close(discard=True)
    del slot
    gc.collect()
    assert memory() is None


def test_a_tensor_that_is_still_in_use_keeps_its_bytes_unless_discarded():
    arena = SlotArena(4 * SMALL.nbytes)
    slot = arena.acquire(SMALL.nbytes)
    slot.record[:] = b"x" * SMALL.nbytes
    tensor = slot.views(SMALL)[0]
    arena.close(discard=False)
    del slot
    gc.collect()
    assert (tensor.view(-1)[:1].view(dtype=tensor.dtype).untyped_storage()[0]) == ord("x")


@pytest.mark.skipif(not KERNEL_TAKES_PAGES_BACK, reason="Linux")
def test_slots_that_are_written_lie_on_huge_pages():
    if not huge_pages_work():
        pytest.skip("this machine has no huge pages")
    size = 3 * HUGE_PAGE + 4096
    arena = SlotArena(4 * size)
    slots = [arena.acquire(size) for _ in range(4)]
    memory = slots[0].record.obj
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert huge_page_nbytes(start, len(memory)) == 0
    for slot in slots:
        slot.record[::4096] = bytes(len(slot.record[::4096]))
    assert huge_page_nbytes(start, len(memory)) == 4 * size // HUGE_PAGE * HUGE_PAGE
    arena.close(discard=True)
    assert huge_page_nbytes(start, len(memory)) == 0

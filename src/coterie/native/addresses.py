"""Where the experts of a bank lie in memory, for native calls that look for themselves."""

from __future__ import annotations

import ctypes

from coterie.native.library import Library

_long = ctypes.c_int64


class Addresses:
    """A table of addresses, written by whoever reads and evicts experts, read by calls that compute.

    A call that finds an expert here has it until the call ends, without a lock: :meth:`withdraw` waits for it.

    Args:
        library: The library.
        count: E.

    Attributes:
        address: Where the table lies.
        count: E.
    """

    def __init__(self, library: Library, count: int) -> None:
        self._table = (_Address * count)()
        self._publish, self._withdraw = (
            library.functions.coterie_publish_address,
            library.functions.coterie_withdraw_address,
        )
        self.address = ctypes.addressof(self._table)
        self.count = count

    def publish(self, expert: int, address: int) -> None:
        """An expert's record is complete, and stays at an address until :meth:`withdraw`."""
        self._publish(self._place(expert), address)

    def withdraw(self, expert: int) -> None:
        """An expert is about to leave its place. Returns when no call computes with it any more."""
        self._withdraw(self._place(expert))

    def __getitem__(self, expert: int) -> int:
        """Address of an expert's record; 0 if it is not there."""
        return int(self._table[expert].address)

    def _place(self, expert: int) -> int:
        if not 0 <= expert < self.count:
            raise IndexError(expert)
        return self.address + expert * ctypes.sizeof(_Address)


class _Address(ctypes.Structure):
    """``coterie_address`` of ``addresses.h``."""

    _fields_ = (("address", _long), ("readers", _long))

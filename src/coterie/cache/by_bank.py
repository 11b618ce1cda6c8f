"""What is resident, by bank and expert id: for decode steps, and for native calls that look for themselves."""

from __future__ import annotations

from collections.abc import Mapping

from coterie.cache.claims import Entry
from coterie.native import Addresses
from coterie.spec import BankKey, ExpertKey, RecordLayout


class ByBank:
    """Lists of the resident experts of banks, kept in step with the table; guarded by the cache's lock.

    Args:
        loaded: The table.
    """

    def __init__(self, loaded: Mapping[ExpertKey, Entry]) -> None:
        self._loaded = loaded
        self._lists: dict[BankKey, list[Entry | None]] = {}
        # The same for native calls, of the records of one layout.
        self._addresses: dict[BankKey, tuple[Addresses, RecordLayout]] = {}

    def list_of(self, bank: BankKey, experts: int) -> list[Entry | None]:
        """What is resident of a bank, by expert id: a list that is kept in step."""
        found = self._lists.get(bank)
        if found is None:
            found = self._lists[bank] = [self._loaded.get(bank.expert(expert)) for expert in range(experts)]
        return found

    def publish(self, bank: BankKey, layout: RecordLayout, addresses: Addresses) -> None:
        """Keeps addresses in step with what is resident of a bank's records of a layout."""
        self._addresses[bank] = (addresses, layout)
        for key, entry in self._loaded.items():
            if key.bank_key == bank:
                self.put(key, entry)

    def put(self, key: ExpertKey, entry: Entry | None) -> None:
        """An expert has become resident, or has left."""
        listed = self._lists.get(key.bank_key)
        if listed is not None:
            listed[key.expert] = entry
        addresses, layout = self._addresses.get(key.bank_key, (None, None))
        if addresses is None:
            return
        if entry is None:
            addresses.withdraw(key.expert)
        elif entry.layout == layout:
            addresses.publish(key.expert, entry.tensors[0].data_ptr() - entry.layout.fields[0].offset)

    def names(self) -> dict[BankKey, tuple[ExpertKey | None, ...]]:
        """What each list names, by expert id."""
        return {
            bank: tuple(None if entry is None else entry.key for entry in listed)
            for bank, listed in self._lists.items()
        }

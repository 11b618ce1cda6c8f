"""The experts of some of a store's banks: a component of a larger model."""

from __future__ import annotations

from collections.abc import Collection

from coterie.spec import BankKey, ExpertKey, Extent, RecordLayout
from coterie.store.reader import Store


class StorePart:
    """A store with the experts of these banks only; an :class:`~coterie.spec.ExpertSource`.

    Args:
        store: The store.
        banks: The banks.
    """

    def __init__(self, store: Store, banks: Collection[BankKey]) -> None:
        self._keys = dict.fromkeys(key for key in store.keys() if key.bank_key in banks).keys()
        self._store = store

    def keys(self) -> Collection[ExpertKey]:
        """The experts of these banks that are present, in ascending order of bank."""
        return self._keys

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of this expert's record."""
        return self._store.layout(key)

    def extents(self, key: ExpertKey) -> tuple[Extent, ...]:
        """Where the record lies."""
        return self._store.extents(key)

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """Reads a record; returns the bytes read."""
        return self._store.read_into(key, record)

    def checksum(self, key: ExpertKey) -> str | None:
        """That of the record."""
        return self._store.checksum(key)

"""A store that grows while it is in use: experts wait for a batch, and a thread of their own writes it.

Every batch is an ordinary growth of the store: new files first, then a new manifest in one step. A crash loses what
was not written yet, and nothing else. Batches grow with the store and in time, so that there are few files.
"""

from __future__ import annotations

import atexit
import functools
import mmap
import os
import threading
import time
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from weakref import WeakSet

from coterie.errors import CoterieError, StoreBusyError, StoreError
from coterie.extraction.planning import bank_plans
from coterie.extraction.quantising import SchemedExperts, SchemeOf, one_scheme
from coterie.origins import Origin
from coterie.spec import BankKey, ExpertKey
from coterie.spec.encodings import NATIVE
from coterie.store import Store, StorePlan, StoreWriter, is_store
from coterie.store.syscalls import SystemCalls

BATCH_BYTES = 64 * 2**20
"""A batch of this size is written at once, even if the last one was just before; later an eighth of the store."""

_FIRST_INTERVAL_S = 5.0
_LONGEST_INTERVAL_S = 300.0
_RETRY_S = 0.25
_PATIENCE_S = 10.0
"""How long the end of a model waits for another process that is writing."""

ReadRecord = Callable[[ExpertKey, memoryview], int]
"""Fills a zeroed, page-aligned buffer with an expert's record; returns the bytes read."""


class StoreGrowth:
    """Adds experts to a store. Safe to use from several threads and, through the store's lock, several processes.

    Args:
        store: The store as it was opened.
        origin: What it was made from, already compared with the manifest.
        scheme: In which experts are added: all in one, or each in its own.
        read: Reads an expert from the checkpoint.
        on_grown: Called after every batch.
        calls: The system calls; tests pass some that fail.
        interval: Seconds from the first waiting expert to the first batch; doubled after each.
        batch_nbytes: Waiting bytes that are written at once.
    """

    def __init__(
        self,
        store: Store,
        origin: Origin,
        *,
        scheme: str | SchemeOf = NATIVE,
        read: ReadRecord,
        on_grown: Callable[[], None],
        calls: SystemCalls | None = None,
        interval: float = _FIRST_INTERVAL_S,
        batch_nbytes: int = BATCH_BYTES,
    ) -> None:
        self.added = 0
        self._store = store
        self._scheme = scheme
        self._sizes = SchemedExperts(origin, one_scheme(scheme))
        self._origin = origin
        self._read = read
        self._on_grown = on_grown
        self._calls = calls
        self._interval = interval
        self._batch_nbytes = max(batch_nbytes, store.manifest.expert_nbytes // 8)
        self._waiting: dict[ExpertKey, int] = {}
        self._condition = threading.Condition()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._pid = os.getpid()
        _GROWING.add(self)
        _close_at_exit()

    @property
    def waiting(self) -> int:
        """Experts that are not written yet."""
        return len(self._waiting)

    def add(self, key: ExpertKey) -> bool:
        """Has an expert written with the next batch. Costs no reading and no writing now.

        Returns:
            Whether it waits to be written; not if the store does not grow any more.
        """
        with self._condition:
            if self._stopped or key in self._waiting:
                return not self._stopped
            self._waiting[key] = self._sizes.layout(key).nbytes
            if self._thread is None:
                # It lives as long as something waits: a model that is dropped unclosed is not kept alive by it.
                self._thread = threading.Thread(target=self._run, name="coterie-growth", daemon=True)
                self._thread.start()
            elif self._is_due():
                self._condition.notify_all()
            return True

    def flush(self) -> bool:
        """Writes what is waiting; False if another process is writing the store, and it goes on waiting.

        If it cannot be written for another reason, this warns, once, and nothing is written any more.
        """
        with self._writing:
            with self._condition:
                keys = tuple(self._waiting)
            if not keys:
                return True
            try:
                self._write(keys)
            except StoreBusyError:
                self._on_grown()
                return False
            except CoterieError as error:
                self._give_up(str(error))
                return True
            with self._condition:
                for key in keys:
                    self._waiting.pop(key, None)
        self._on_grown()
        return True

    def close(self) -> None:
        """Writes what is waiting and ends the thread. Harmless when repeated."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self.flush():
            if time.monotonic() > deadline:
                self._give_up("Another process was writing it all the time.")
                break
            time.sleep(_RETRY_S)
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def close_at_exit(self) -> None:
        """:meth:`close` for a model that nobody closed; nothing in a forked process, to which none of it belongs."""
        if os.getpid() == self._pid:
            self.close()

    def _run(self) -> None:
        delay = self._interval
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopped or self._is_due(), timeout=delay)
                if self._stopped or not self._waiting:
                    self._thread = None
                    return
            if self.flush():
                self._interval = delay = min(2 * self._interval, _LONGEST_INTERVAL_S)
            else:
                time.sleep(_RETRY_S)

    def _is_due(self) -> bool:
        return sum(self._waiting.values()) >= self._batch_nbytes

    def _write(self, keys: Collection[ExpertKey]) -> None:
        root = self._store.path
        if not is_store(root):
            raise StoreError(f"{root} is no longer a store.", path=root)
        added = 0
        with StoreWriter.open(root, self._plan(keys), calls=self._calls) as writer:
            banks = writer.missing_banks()
            for key in banks:
                with writer.bank(key) as bank:
                    for expert in bank.experts:
                        layout = bank.layout(expert)
                        # A fresh mapping starts on a page and is zero; only one record is in memory at a time.
                        buffer = mmap.mmap(-1, layout.nbytes)
                        with memoryview(buffer) as record:
                            self._read(key.expert(expert), record)
                            bank.write(expert, record)
                        with suppress(BufferError):
                            buffer.close()
                added += len(bank.experts)
            manifest = writer.finish()
        self.added += added
        self._batch_nbytes = max(self._batch_nbytes, manifest.expert_nbytes // 8)

    def _plan(self, keys: Collection[ExpertKey]) -> StorePlan:
        chosen: dict[BankKey, tuple[int, ...]] = {}
        for key in sorted(keys):
            chosen[key.bank_key] = (*chosen.get(key.bank_key, ()), key.expert)
        manifest = self._store.manifest
        return StorePlan(
            model=manifest.model,
            source=manifest.source,
            banks=bank_plans(self._origin, chosen, self._scheme),
            ignored=manifest.ignored,
            dense_schemes=manifest.dense_schemes,
        )

    def _give_up(self, why: str) -> None:
        with self._condition:
            if self._stopped:
                return
            self._stopped = True
            lost = len(self._waiting)
            self._waiting.clear()
            self._condition.notify_all()
        warnings.warn(
            f"{self._store.path} does not grow any more; {lost} fetched experts were not added, and what it lacks is "
            f"read from the checkpoint each time. {why}",
            stacklevel=2,
        )


_GROWING: WeakSet[StoreGrowth] = WeakSet()


@functools.cache
def _close_at_exit() -> None:
    """Registers, once and not at import, that models which nobody closes still add what they have fetched."""
    atexit.register(_close_all)


def _close_all() -> None:
    for growth in list(_GROWING):
        growth.close_at_exit()

"""Parts of a model that are in memory only while a request needs them: encoders, and what speaks.

Their weights have addresses of their own for as long as the model is open, so whoever computes with them natively need
not know. What comes and goes is the memory behind the addresses: experts lend it (:mod:`coterie.engine.lending`), and
have it again when nobody needs the part. What is read from a store is compared with what it was when the store was
opened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from coterie.cache.arena import AddressRange
from coterie.checkpoint import LazyTensor, TensorInfo
from coterie.engine.lending import Lending
from coterie.engine.part_memory import Weight, read_now, read_rows, reserve
from coterie.errors import CoterieError, LoadError, MemoryBudgetError, UsageError
from coterie.hf.keymap import plain_targets
from coterie.hf.parts import is_whole, may_leave, part_path
from coterie.integration import AwayModules, EmbeddingRows, cover
from coterie.plan.budget import MemoryPlan
from coterie.spec.footprint import ROWS_NBYTES, Footprint, PartUse

_TALKER = "talker"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartStats:
    """What became of a part since the model was opened.

    Attributes:
        nbytes: Bytes that leave memory with it.
        resident: Whether it is in memory now.
        reads: How often it was read.
        read_nbytes: Bytes that these reads read.
        read_s: Seconds that they took, making room for them included.
    """

    nbytes: int
    resident: bool
    reads: int
    read_nbytes: int
    read_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class _Part:
    path: str
    use: PartUse
    memory: AddressRange
    length: int
    tensors: list[Weight]
    modules: AwayModules | None = None
    resident: bool = True
    # Whether it could not be read ahead of need: its next call says why.
    failed: bool = False
    calls: int = 0
    users: set[int] = field(default_factory=set)
    reads: int = 0
    read_nbytes: int = 0
    read_s: float = 0.0

    @property
    def nbytes(self) -> int:
        return sum(len(one.record) for one in self.tensors)

    def discard(self) -> None:
        self.memory.advise("MADV_DONTNEED", self.memory.start, self.length)


class Parts:
    """The parts of one model. Safe to use from several threads.

    A part comes into memory when one of its modules is called. It leaves it again

    - if it is an encoder, when the call is over;
    - if it speaks, when the thread that called it begins a pass of another component, unless somebody holds it. What
      :meth:`hold` has kept stays until such a pass: an answer that follows, and speaks too, finds it.

    What speaks is read before it is called, while whoever holds it reads the prompt, if experts can lend that much
    beside what encoders take. A part stays for as long as any other thread is not done with it. A part that somebody
    holds and that does not compute may leave for another one that there is no room for otherwise, and comes back with
    its next call.

    Args:
        footprint: What the model takes.
        dense: Its dense tensors by checkpoint name, unread.
        encoded: Codes and scales of its linear layers that are in a scheme.
        dtype: That it computes in.
        table: Checkpoint name of the table of embeddings whose rows are read when they are asked for, or None.
        component: The component that it is of a larger checkpoint, or None.
    """

    def __init__(
        self,
        footprint: Footprint,
        dense: Mapping[str, Any],
        encoded: Collection[TensorInfo],
        dtype: torch.dtype,
        table: str | None,
        component: str | None,
    ) -> None:
        self._footprint = footprint
        self._dense = dense
        self._encoded = encoded
        self._dtype = dtype
        self._table = table
        self._component = component
        self._parts: list[_Part] = []
        self._rows: tuple[Weight, AddressRange] | None = None
        self.rows: EmbeddingRows | None = None
        self._held: dict[PartUse, int] = {"encoding": 0, "speaking": 0}
        self._lock = threading.RLock()
        self._any_here = False
        self._reader: threading.Thread | None = None
        # Encoders that are about to be used: who reads ahead of need makes way for them.
        self._encoders = 0
        self._lending: Lending | None = None
        self._beside: dict[PartUse, int] = {}

    def postpone(self, model: nn.Module) -> None:
        """Puts the reading of what comes and goes off; before any weight is read.

        Args:
            model: The skeleton, with its experts.
        """
        plain = plain_targets(model, self._dense, component=self._component)
        whole = is_whole((*self._dense, *(info.name for info in self._encoded)))
        wanted: dict[str, list[tuple[TensorInfo, str | None]]] = {}
        for name, tensor in self._dense.items():
            found = part_path(name, whole=whole)
            if found is not None and name in plain and may_leave(tensor) and self._postponable(tensor):
                wanted.setdefault(found[0], []).append((tensor.info, plain[name]))
        for info in self._encoded:
            found = part_path(info.name, whole=whole)
            if found is not None and may_leave(info):
                wanted.setdefault(found[0], []).append((info, None))
        for part in self._footprint.parts:
            if wanted.get(part.path):
                memory, length, tensors = reserve(wanted[part.path])
                self._parts.append(_Part(path=part.path, use=part.use, memory=memory, length=length, tensors=tensors))
        table = None if self._table is None else self._dense.get(self._table)
        if table is not None and self._table in plain and self._postponable(table):
            path = plain[self._table].rpartition(".")[0]
            tied = getattr(model, "all_tied_weights_keys", None) or {}
            if EmbeddingRows.serves(model.get_submodule(path)) and plain[self._table] not in {*tied, *tied.values()}:
                memory, _, (only,) = reserve([(table.info, plain[self._table])])
                self._rows = only, memory

    def _postponable(self, tensor: Any) -> bool:
        """Whether a tensor lies in memory as it is stored, and whoever keeps it can read it later."""
        return (
            isinstance(tensor, LazyTensor)
            and tensor.dtype == self._dtype
            and hasattr(tensor.info.keeper, "read_postponed")
        )

    def settle(self, model: nn.Module) -> None:
        """Finds the modules of what comes and goes; as soon as weights are loaded.

        Raises:
            CoterieError: If a weight that turns out to be held otherwise cannot be read.
        """
        for part in self._parts:
            part.tensors = [one for one in part.tensors if self._settled(model, one)]
            addresses = frozenset(one.weight.data_ptr() for one in part.tensors)
            root = model.get_submodule(self._module_path(model, part.path))
            part.modules = AwayModules(part.path, root, addresses, partial(self._bring, part))
            if part.modules.addresses != addresses:
                raise LoadError(
                    f"{len(addresses - part.modules.addresses)} weights of {part.path} are not where they were loaded.",
                    advice="This release of transformers is not supported; please report it.",
                )
            cover(root, partial(self._using, part), deep=part.use == "speaking")
        if self._rows is not None and self._settled(model, self._rows[0]):
            tensor, _ = self._rows
            assert tensor.target is not None
            path = tensor.target.rpartition(".")[0]
            embedding: Any = model.get_submodule(path)
            self.rows = EmbeddingRows(embedding, partial(read_rows, tensor.info), ROWS_NBYTES)
            self.rows.install(embedding, path)

    @staticmethod
    def _module_path(model: nn.Module, path: str) -> str:
        """Where the part of a checkpoint is in the model, whose outer names may differ."""
        found = [name for name, _ in model.named_modules() if name == path or name.endswith(f".{path}")]
        last = path.rpartition(".")[2]
        found += [name for name, _ in model.named_modules() if name.rpartition(".")[2] == last]
        if not found:
            raise LoadError(f"The model has no {last}, of which there are weights.", advice="Please report it.")
        return str(found[0])

    def _settled(self, model: nn.Module, one: Weight) -> bool:
        """Whether a weight lies in the memory that was reserved for it; else it is read, and stays."""
        if one.target is None:
            return True
        holder, _, name = one.target.rpartition(".")
        weight = getattr(model.get_submodule(holder), name)
        if weight.dtype == one.weight.dtype and weight.shape == one.weight.shape:
            weight.data = one.weight
            return True
        with torch.no_grad():
            weight.data.copy_(read_now(one))
        return False

    def leave_all(self) -> None:
        """No part is in memory from now on; after everything that looks at weights has done so."""
        for part in self._parts:
            self._leave(part)

    def connect(self, lending: Lending, plan: MemoryPlan) -> None:
        """Says where memory comes from; before the model is used.

        Args:
            lending: Of the experts.
            plan: How the budget is divided.
        """
        self._lending = lending
        self._beside = {use: max(0, lent - self._footprint.parts_for(use)) for use, lent in plan.lent.items()}

    @contextmanager
    def hold(self, use: PartUse) -> Iterator[None]:
        """Inside, parts for a use stay once they have come, whatever else this thread computes.

        Afterwards they are nobody's: the next pass of another component, in whichever thread, has them leave.
        """
        with self._lock:
            self._held[use] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[use] -= 1
                for part in self._parts:
                    if part.use == use:
                        part.users.discard(threading.get_ident())

    def let_idle_go(self) -> None:
        """Parts that nobody holds or computes with leave memory: somebody else needs what they borrow."""
        with self._lock:
            for part in self._parts:
                self._leave_unused(part)

    def pass_begins(self, component: str) -> None:
        """This thread begins a forward pass of a component: it has done with what is not of that."""
        if self._held["speaking"] and component != _TALKER:
            self._read_ahead()
        if not self._any_here:
            return
        # Who brings a part meanwhile has the lock for long: nothing need leave just now.
        if not self._lock.acquire(blocking=False):
            return
        try:
            for part in self._parts:
                if part.resident and (part.use == "encoding" or component != _TALKER):
                    part.users.discard(threading.get_ident())
                    self._leave_unused(part)
        finally:
            self._lock.release()

    def _read_ahead(self) -> None:
        """What speaks is read meanwhile, by a thread of its own."""
        absent = [part for part in self._parts if part.use == "speaking" and not (part.resident or part.failed)]
        if not absent or self._lending is None or (self._reader is not None and self._reader.is_alive()):
            return
        uses: tuple[PartUse, ...] = ("speaking", "encoding")
        wanted = sum(self._footprint.parts_for(use) + self._beside.get(use, 0) - self._lent(use) for use in uses)
        if self._lending.free < wanted:
            return
        self._reader = threading.Thread(target=self._bring_all, args=(absent,), name="coterie-parts", daemon=True)
        self._reader.start()

    def _bring_all(self, parts: list[_Part]) -> None:
        """Has parts in memory that somebody holds. What cannot be read says so when it is called."""
        for part in parts:
            if self._encoders:
                return  # it is begun anew when they have done
            with self._lock:
                if self._held[part.use] and not part.resident:
                    try:
                        self._read(part)
                    except CoterieError:
                        part.failed = True

    def stats(self) -> dict[str, PartStats]:
        """What became of each part."""
        return {
            part.path: PartStats(
                nbytes=part.nbytes,
                resident=part.resident,
                reads=part.reads,
                read_nbytes=part.read_nbytes,
                read_s=part.read_s,
            )
            for part in self._parts
        }

    @contextmanager
    def _using(self, part: _Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
        encodes = part.use == "encoding"
        self._encoders += encodes
        try:
            with self._lock:
                part.calls += 1
                try:
                    self._bring(part)
                except BaseException:
                    part.calls -= 1
                    raise
        finally:
            self._encoders -= encodes
        try:
            yield
        finally:
            with self._lock:
                part.calls -= 1
                if encodes:
                    part.users.discard(threading.get_ident())
                    self._leave_unused(part)
            if encodes and self._held["speaking"]:
                self._read_ahead()  # it made way, and has the rest of the prompt's pass now

    def _bring(self, part: _Part) -> None:
        """Has a part in memory, and notes that this thread is not done with it.

        Raises:
            CoterieError: If there is no room for it, or it cannot be read; then it is as before.
        """
        with self._lock:
            part.failed = False
            if not part.resident:
                self._read(part)
            part.users.add(threading.get_ident())

    def _read(self, part: _Part) -> None:
        begun = time.perf_counter()
        by_keeper: dict[int, list[Weight]] = {}
        for one in part.tensors:
            by_keeper.setdefault(id(one.keeper), []).append(one)
        self._borrow(part)
        try:
            for tensors in by_keeper.values():
                records = {one.info.name: one.record for one in tensors}
                tensors[0].keeper.read_postponed([one.info for one in tensors], partial(_record_of, records))
        except BaseException:
            part.discard()
            self._return(part)
            raise
        assert part.modules is not None
        part.modules.come_back()
        self._note(part, resident=True)
        part.reads += 1
        part.read_nbytes += part.nbytes
        part.read_s += time.perf_counter() - begun

    def _borrow(self, part: _Part) -> None:
        """Makes room for a part: by fewer experts, and where those are few already, by parts that do not compute."""
        if self._lending is None:
            return
        while True:
            try:
                self._lending.lend((self, part.use), self._lent(part.use, also=part))
            except MemoryBudgetError:
                idle = [one for one in self._parts if one.resident and not one.calls]
                if not idle:
                    raise
                self._leave(min(idle, key=lambda one: (one.use == part.use, len(one.users))))
            else:
                return

    def _return(self, part: _Part) -> None:
        if self._lending is not None:
            with suppress(UsageError):  # the model was closed
                self._lending.lend((self, part.use), self._lent(part.use))

    def _lent(self, use: PartUse, also: _Part | None = None) -> int:
        """What the parts of a use that are in memory borrow together, with one that comes."""
        here = [one for one in self._parts if one.use == use and (one.resident or one is also)]
        return sum(one.nbytes for one in here) + self._beside.get(use, 0) if here else 0

    def _leave_unused(self, part: _Part) -> None:
        if not part.resident or part.calls or self._held[part.use]:
            return
        if part.users:
            alive = {thread.ident for thread in threading.enumerate()}
            part.users &= alive
        if not part.users:
            self._leave(part)

    def _leave(self, part: _Part) -> None:
        assert part.modules is not None
        # First of all: whatever comes in between, the next call reads it again.
        self._note(part, resident=False)
        part.modules.leave()
        part.discard()
        part.users.clear()
        self._return(part)

    def _note(self, part: _Part, *, resident: bool) -> None:
        part.resident = resident
        self._any_here = any(one.resident for one in self._parts)


def _record_of(records: Mapping[str, memoryview], info: TensorInfo) -> memoryview:
    return records[info.name]

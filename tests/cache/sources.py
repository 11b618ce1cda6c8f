"""A small ExpertSource whose every byte follows from its key, in each way that a record can be stored."""

import contextlib
import gc
import hashlib
import threading
import time

import torch
import xxhash

from coterie.cache import Consumer
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.records import LocalFile
from coterie.spec import ExpertKey, Extent, RecordLayout

SMALL = RecordLayout.build("gate_up|down", [("gate_up_proj", "BF16", (24, 40)), ("down_proj", "BF16", (40, 12))])
LARGE = RecordLayout.build("gate_up|down", [("gate_up_proj", "F32", (48, 40)), ("down_proj", "F32", (40, 24))])
SCALED = RecordLayout.build("q|scale", [("weight", "U8", (50, 67)), ("scale", "F32", (50,)), ("zero", "I8", (3,))])
LAYOUTS = (SMALL, LARGE, SCALED)
PATIENCE_S = 120
"""How long a test waits for what must happen: long enough for the busiest machine, shorter than pytest's limit."""


def keys_of(count, layer=0, component="text"):
    return [ExpertKey(component, layer, "mlp", expert) for expert in range(count)]


def field_bytes(key, field):
    return hashlib.shake_128(f"{key} {field.name}".encode()).digest(field.nbytes)


def record_bytes(key, layout):
    record = bytearray(layout.nbytes)
    for field in layout.fields:
        record[field.offset : field.offset + field.nbytes] = field_bytes(key, field)
    return bytes(record)


def assert_is(key, layout, tensors):
    """The tensors are this expert's, in every byte."""
    assert len(tensors) == len(layout.fields)
    for field, tensor in zip(layout.fields, tensors, strict=True):
        assert tensor.shape == field.shape
        assert tensor.dtype == TORCH_DTYPES[field.dtype]
        assert not tensor.requires_grad
        assert tensor.contiguous().view(torch.uint8).numpy().tobytes() == field_bytes(key, field), key


class TinySource:
    """Experts in one file.

    ``kind``: ``aligned`` (one extent on a 4096-byte offset), ``odd`` (an extent for each field, at odd offsets, last
    field first) or ``decoded`` (no extents). ``before_read(key)`` runs on the reading thread before each read.
    """

    def __init__(self, root, layouts, kind="aligned", before_read=None):
        self.path = root / "experts.bin"
        self.kind = kind
        self.before_read = before_read
        self.reads = []
        self._lock = threading.Lock()
        self._layouts = dict(layouts)
        self._extents = {}
        with open(self.path, "wb") as file:
            for key, layout in self._layouts.items():
                self._extents[key] = tuple(self._write(file, key, layout))

    @classmethod
    def uniform(cls, root, count, layout=SMALL, **options):
        return cls(root, dict.fromkeys(keys_of(count), layout), **options)

    @classmethod
    def mixed(cls, root, count, **options):
        return cls(root, {key: LAYOUTS[key.expert % 3] for key in keys_of(count)}, **options)

    def _write(self, file, key, layout):
        if self.kind == "odd":
            for field in reversed(layout.fields):
                file.write(b"?" * 7)
                yield Extent(source=LocalFile(self.path), offset=file.tell(), nbytes=field.nbytes, at=field.offset)
                file.write(field_bytes(key, field))
        else:
            yield Extent(source=LocalFile(self.path), offset=file.tell(), nbytes=layout.nbytes)
            file.write(record_bytes(key, layout))

    def keys(self):
        return self._layouts.keys()

    def layout(self, key):
        return self._layouts[key]

    def total(self):
        return sum(layout.nbytes for layout in self._layouts.values())

    def _note(self, key):
        with self._lock:
            self.reads.append(key)
        if self.before_read is not None:
            self.before_read(key)

    def extents(self, key):
        self._note(key)
        return None if self.kind == "decoded" else self._extents[key]

    def read_into(self, key, record):
        layout = self._layouts[key]
        for field in layout.fields:
            record[field.offset : field.offset + field.nbytes] = field_bytes(key, field)
        return layout.payload_nbytes

    def checksum(self, key):
        return xxhash.xxh3_128(record_bytes(key, self._layouts[key])).hexdigest()


class Gate:
    """Holds reads back until they are let through; use it as ``before_read``."""

    def __init__(self, *keys):
        self._shut = set(keys)
        self._condition = threading.Condition()
        self.arrived = []

    def __call__(self, key):
        with self._condition:
            self.arrived.append(key)
            self._condition.notify_all()
            assert self._condition.wait_for(lambda: key not in self._shut, timeout=PATIENCE_S), (
                f"{key} was never let through"
            )

    def open(self, *keys):
        with self._condition:
            self._shut.difference_update(keys or tuple(self._shut))
            self._condition.notify_all()

    def wait_for(self, key):
        with self._condition:
            assert self._condition.wait_for(lambda: key in self.arrived, timeout=PATIENCE_S), f"{key} was never read"


class Failing:
    """Fails the reads of some keys, as often as told; use it as ``before_read``."""

    def __init__(self, error, *keys, times=1):
        self._error = error
        self._left = dict.fromkeys(keys, times)

    def __call__(self, key):
        if self._left.get(key, 0) > 0:
            self._left[key] -= 1
            raise self._error


class Own(threading.local):
    def __init__(self):
        self.consumer = Consumer()


_own = Own()


def me():
    """The consumer of this thread."""
    return _own.consumer


def leased(cache, keys, **options):
    """A lease of this thread's consumer, unless another is given."""
    return cache.lease(keys, **{"consumer": me()} | options)


def predict(cache, keys):
    """What this thread's consumer will probably ask for."""
    cache.predict(keys, consumer=me())


def bring(cache, keys):
    """Has experts read, as a decode step would."""
    with leased(cache, keys) as lease:
        for _ in lease:
            pass


@contextlib.contextmanager
def collecting_after(allocations, lost):
    """Has things that are lost in a cycle collected after so many allocations from here, or at the end."""
    before = gc.get_threshold()
    # Nothing but them is looked at, and they are the youngest.
    gc.freeze()
    gc.disable()
    gc.collect()
    gc.set_threshold(allocations)
    cycle = [lost]
    cycle.append(cycle)
    del cycle, lost
    gc.enable()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.collect()
        gc.unfreeze()


def wait_until(condition):
    """Waits until a condition holds; fails if it never does."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "what was waited for never came"
        time.sleep(0.001)


def run_threads(*targets):
    """Runs the targets in threads and raises what they raise; fails if they do not end."""
    problems = []

    def guard(target):
        try:
            target()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=guard, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    if problems:
        raise problems[0]


def assert_consistent(cache):
    """Nothing is held, and table, policy and arena agree. For a cache that nobody uses."""
    found, figures = cache.quiesce(timeout=PATIENCE_S), cache.stats()
    assert (found.leases, found.queued, found.holds) == (0, 0, 0)
    assert not found.loading
    assert not found.held
    assert figures.resident_bytes == sum(nbytes for nbytes, _ in found.slots)
    assert figures.resident_bytes <= figures.committed_bytes <= cache.capacity
    assert len(set(found.slots)) == len(found.slots)
    for bank, keys in found.by_bank.items():
        resident = (bank.expert(expert) for expert in range(len(keys)))
        assert keys == tuple(key if key in found.resident else None for key in resident)
    assert found.ranked == set(found.resident)


class Device(Consumer):
    """Reads slots after the host has gone on, until it is told to have finished."""

    __slots__ = ("pending",)

    def __init__(self):
        self.pending = []

    def fence(self, release):
        self.pending.append(release)

    def finish(self):
        while self.pending:
            release = self.pending.pop(0)
            release()
            release()

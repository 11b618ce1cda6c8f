"""Memory that open models of this process were promised and have not used yet.

A budget is for the whole process. What another model holds already is seen in the process's memory; what its arena,
context and activations may still come to hold is not, and must not be given away a second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from coterie.engine.runtime import Runtime

_OPEN: WeakSet[Runtime] = WeakSet()


def promise(runtime: Runtime) -> None:
    """Counts a model's memory from now on, until it is closed or collected."""
    _OPEN.add(runtime)


def release(runtime: Runtime) -> None:
    """Counts it no longer. Harmless when repeated."""
    _OPEN.discard(runtime)


def promised_nbytes() -> int:
    """Bytes that the open models may still come to hold, beyond what they hold now."""
    total = 0
    for runtime in list(_OPEN):
        stats = runtime.cache.stats()
        total += stats.capacity - stats.resident_bytes
        if runtime.plan is not None:
            total += runtime.plan.kv_cache + runtime.plan.activations + runtime.plan.io_buffers
    return total

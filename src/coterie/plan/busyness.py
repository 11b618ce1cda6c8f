"""How many processors other processes keep busy: what this one did is taken off what the machine did."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from coterie.plan.machine import SYSTEM_ROOT

LEAST_S = 0.1
"""Seconds between two samples below which they say nothing: the kernel counts in hundredths of a second."""

_IDLE_FIELDS = (3, 4)
"""Places of the columns ``idle`` and ``iowait`` in a line of ``/proc/stat``."""

_GUEST_FIELDS = 8
"""Columns before ``guest`` and ``guest_nice``, whose time is in ``user`` and ``nice`` already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorTimes:
    """Processor time that was used until one moment.

    Attributes:
        at_s: The moment, on a clock of its own.
        busy_s: Of the processors that this process may use, by whomever; what a host took away from them included.
        own_s: Of it, by this process.
    """

    at_s: float
    busy_s: float
    own_s: float


def processor_times(*, root: Path = SYSTEM_ROOT) -> ProcessorTimes | None:
    """The times until now; None where the kernel does not tell (all but Linux, and some containers)."""
    try:
        lines = (root / "proc/stat").read_text(encoding="ascii", errors="replace").splitlines()
        cores, tick = os.sched_getaffinity(0), os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None
    busy = found = 0
    for line in lines:
        name, _, rest = line.partition(" ")
        if not name.startswith("cpu") or not name[3:].isdigit() or int(name[3:]) not in cores:
            continue
        counts = [int(field) for field in rest.split()[:_GUEST_FIELDS] if field.isdigit()]
        busy += sum(count for place, count in enumerate(counts) if place not in _IDLE_FIELDS)
        found += sum(counts) > 0
    if not found:
        return None
    return ProcessorTimes(at_s=time.monotonic(), busy_s=busy / tick, own_s=time.process_time())


def cores_of_others(before: ProcessorTimes, after: ProcessorTimes) -> float | None:
    """Processors' worth of time that others used between two moments; None if these are too close to each other."""
    seconds = after.at_s - before.at_s
    if seconds < LEAST_S:
        return None
    others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return max(0.0, others / seconds)


def load_average() -> float | None:
    """Processes that wanted to run, averaged over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None

"""Facts that a figure means nothing without: the machine, the versions, and how busy it was."""

from __future__ import annotations

import datetime
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("coterie", "torch", "transformers", "safetensors", "numpy")


def describe_machine(work: Path) -> dict[str, str]:
    """Machine, disk of ``work`` and versions, as label → text."""
    import torch

    from coterie.plan.new_memory import new_memory_bandwidth

    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {os.cpu_count()} cores, torch uses {torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB, what nothing uses yet "
        f"becomes usable at {new_memory_bandwidth() / 1e9:.1f} GB/s",
        "disk": _disk(work),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }


def load_average() -> float:
    """Processes that wanted to run, averaged over the last minute."""
    return os.getloadavg()[0]


def wait_until_quiet(patience_s: float, *, below: float = 0.5) -> float:
    """Waits until the load average falls below a bound, or patience ends; returns the load then."""
    deadline = time.monotonic() + patience_s
    while load_average() >= below and time.monotonic() < deadline:
        time.sleep(2)
    return load_average()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _disk(work: Path) -> str:
    """File system and device that a directory lies on."""
    work = work.resolve()
    best = ("", "unknown", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, mount, kind = line.split()[:3]
        if (str(work) + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best[0]):
            best = (mount, kind, device)
    return f"{best[1]} on {best[2]}"

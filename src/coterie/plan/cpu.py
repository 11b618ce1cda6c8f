"""The processor as this process may use it: cores, instruction sets, huge pages."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from coterie.plan.machine import SYSTEM_ROOT

INSTRUCTION_SETS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
"""Flags of ``/proc/cpuinfo`` (x86-64, then aarch64) that decide which kernels torch can run."""


def processor_name(*, root: Path = SYSTEM_ROOT) -> str:
    """The processor's model name, or its architecture where the kernel tells no name."""
    return _cpuinfo("model name", root) or platform.processor() or platform.machine()


def instruction_sets(*, root: Path = SYSTEM_ROOT) -> tuple[str, ...]:
    """Those of ``INSTRUCTION_SETS`` that the processor has; empty where the kernel does not tell."""
    flags = set((_cpuinfo("flags", root) or _cpuinfo("Features", root)).split())
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def usable_cores() -> int:
    """Logical processors that this process may run on (its affinity mask, not the machine's count)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def core_quota(*, root: Path = SYSTEM_ROOT) -> int | None:
    """Processors' worth of time that the cgroup grants, rounded up, or None without a quota.

    Reads the cgroup mount points that containers show (``cpu.max``, ``cpu.cfs_quota_us``).
    """
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return max(1, math.ceil(int(quota) / int(period)))


def transparent_huge_pages(*, root: Path = SYSTEM_ROOT) -> str | None:
    """The kernel's setting, ``always``, ``madvise`` or ``never``, or None where there is none."""
    try:
        text = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    return next((word[1:-1] for word in text.split() if word.startswith("[") and word.endswith("]")), None)


def _cpuinfo(name: str, root: Path) -> str:
    """The first value of this name in ``/proc/cpuinfo``, or an empty text."""
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""

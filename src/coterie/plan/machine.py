"""How much memory there is: of the machine, of the memory cgroup, of this process.

Every function that reads the kernel's files takes ``root``, the directory that ``/proc`` and ``/sys`` lie in, so that
tests can show it another machine. Off Linux the numbers come from psutil.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

SYSTEM_ROOT = Path("/")

_UNLIMITED = 2**60
"""cgroup v1 writes "no limit" as a number just under 2**63; nothing real is that large."""

_MARGIN_SHARE = 16
_LEAST_MARGIN = 256 * 2**20
_GREATEST_MARGIN = 2 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Resident memory of this process in bytes.

    Attributes:
        anonymous: Heap, stacks, arenas: cannot be dropped, only swapped.
        file_mapped: Pages of mapped files (libraries, mmapped weights): can be dropped and read again.
        shared: Shared memory and tmpfs pages.
        page_tables: Kernel memory for this process's page tables.
    """

    anonymous: int
    file_mapped: int
    shared: int
    page_tables: int

    @property
    def total(self) -> int:
        """What a memory budget for the whole process bounds: all of them together."""
        return self.anonymous + self.file_mapped + self.shared + self.page_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMemory:
    """One of the memory limits of the cgroups that this process is in.

    Attributes:
        version: cgroup version of the hierarchy.
        path: Directory of the cgroup that has the limit.
        limit: Its limit in bytes (for v2 the smaller of ``memory.max`` and ``memory.high``; for v1 that of an ancestor
            which a container does not show, if that is smaller).
        usage: Bytes charged to it, page cache included.
        file_cache: Of these, page cache, which the kernel gives back under pressure.
    """

    version: Literal[1, 2]
    path: Path
    limit: int
    usage: int
    file_cache: int

    @property
    def headroom(self) -> int:
        """Bytes that could still be allocated in it once its page cache is dropped."""
        return max(0, self.limit - max(0, self.usage - self.file_cache))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimits:
    """All that bounds this process's memory, in bytes.

    Attributes:
        total: Physical memory.
        available: What could be allocated without swapping, as the kernel estimates it.
        cgroup: The cgroup with the least memory left, or None where none has a limit.
        process: What this process holds now.
    """

    total: int
    available: int
    cgroup: CgroupMemory | None
    process: ProcessMemory

    @property
    def attainable(self) -> int:
        """The most that this process could come to hold, what it holds now included."""
        bound = self.available + self.process.anonymous
        if self.cgroup is not None:
            bound = min(bound, self.cgroup.limit, self.cgroup.headroom + self.process.anonymous)
        return min(bound, self.total)


def memory_limits(*, root: Path = SYSTEM_ROOT) -> MemoryLimits:
    """Reads the machine's, the cgroup's and the process's memory at once."""
    return MemoryLimits(
        total=total_memory(root=root),
        available=available_memory(root=root),
        cgroup=cgroup_memory(root=root),
        process=process_memory(root=root),
    )


def default_memory_budget(limits: MemoryLimits | None = None, *, root: Path = SYSTEM_ROOT) -> int:
    """The byte budget for the whole process where the caller states none.

    It is what the process could come to hold (``MemoryLimits.attainable``) less a margin of a sixteenth, at least
    256 MiB and at most 2 GiB, which keeps the libraries' own pages from being squeezed out. On a machine with less
    than the margin it is 0, which no model accepts.

    Args:
        limits: What to derive it from; read from the system if None.
        root: Where ``/proc`` and ``/sys`` lie.
    """
    if limits is None:
        limits = memory_limits(root=root)
    return max(0, limits.attainable - memory_margin(limits.attainable))


def memory_margin(attainable: int) -> int:
    """Bytes left free of ``attainable`` ones by :func:`default_memory_budget`."""
    return min(max(attainable // _MARGIN_SHARE, _LEAST_MARGIN), _GREATEST_MARGIN)


def total_memory(*, root: Path = SYSTEM_ROOT) -> int:
    """Physical memory in bytes."""
    value = _kib_fields(root / "proc/meminfo").get("MemTotal")
    return value if value is not None else int(psutil.virtual_memory().total)


def available_memory(*, root: Path = SYSTEM_ROOT) -> int:
    """Bytes that could be allocated on this machine without swapping, whatever any cgroup says."""
    value = _kib_fields(root / "proc/meminfo").get("MemAvailable")
    return value if value is not None else int(psutil.virtual_memory().available)


def process_memory(*, exact: bool = False, root: Path = SYSTEM_ROOT) -> ProcessMemory:
    """What this process holds in memory.

    Args:
        exact: Walk the page tables (``smaps_rollup``: exact, takes milliseconds per GiB) instead of reading the
            kernel's counters (``status``: microseconds, off by up to some hundred KiB per thread).
        root: Where ``/proc`` lies.
    """
    status = _kib_fields(root / "proc/self/status")
    page_tables = status.get("VmPTE", 0)
    if exact:
        rollup = _kib_fields(root / "proc/self/smaps_rollup")
        if "Rss" in rollup and "Anonymous" in rollup:
            shared = status.get("RssShmem", 0)
            return ProcessMemory(
                anonymous=rollup["Anonymous"],
                file_mapped=max(0, rollup["Rss"] - rollup["Anonymous"] - shared),
                shared=shared,
                page_tables=page_tables,
            )
    if "RssAnon" in status:
        return ProcessMemory(
            anonymous=status["RssAnon"],
            file_mapped=status.get("RssFile", 0),
            shared=status.get("RssShmem", 0),
            page_tables=page_tables,
        )
    info = psutil.Process().memory_info()
    # Only Linux tells pages of files from the rest; elsewhere all of it counts as memory that cannot be dropped.
    file_mapped = int(getattr(info, "shared", 0))
    return ProcessMemory(anonymous=int(info.rss) - file_mapped, file_mapped=file_mapped, shared=0, page_tables=0)


def cgroup_memory_limit(*, root: Path = SYSTEM_ROOT) -> int | None:
    """The tightest memory limit in bytes of the cgroups that this process is in, or None where none applies."""
    return min((found.limit for found in _limited_cgroups(root)), default=None)


def cgroup_memory(*, root: Path = SYSTEM_ROOT) -> CgroupMemory | None:
    """The cgroup, v1 or v2, own or ancestor, in which the least memory is left for this process.

    That is not always the one with the smallest limit: others take from an ancestor's, too.
    """
    return min(_limited_cgroups(root), key=lambda found: (found.headroom, found.limit), default=None)


def _limited_cgroups(root: Path) -> list[CgroupMemory]:
    return [found for version, path in _cgroup_directories(root) if (found := _read_cgroup(version, path))]


def _read_cgroup(version: Literal[1, 2], path: Path) -> CgroupMemory | None:
    """The limit of one cgroup directory, or None where it has none."""
    names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    stat = _stat_fields(path / "memory.stat")
    stated = [_number(path / name) for name in names]
    if version == 1:
        stated.append(stat.get("hierarchical_memory_limit"))
    limits = [value for value in stated if value is not None and value < _UNLIMITED]
    if not limits:
        return None
    if version == 2:
        usage, cache = _number(path / "memory.current"), stat.get("file", 0) - stat.get("shmem", 0)
    else:
        usage = _number(path / "memory.usage_in_bytes")
        cache = stat.get("total_cache", 0) - stat.get("total_shmem", 0)
    return CgroupMemory(version=version, path=path, limit=min(limits), usage=usage or 0, file_cache=max(0, cache))


def _cgroup_directories(root: Path) -> Iterator[tuple[Literal[1, 2], Path]]:
    """Directories of this process's memory cgroups, each followed by its ancestors up to the mount point."""
    mounts = list(_cgroup_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        controllers, member = parts[1], parts[2]
        if controllers and "memory" not in controllers.split(","):
            continue
        wanted: Literal[1, 2] = 1 if controllers else 2
        for version, mount_root, mount_point in mounts:
            if version != wanted:
                continue
            base = root / mount_point.lstrip("/")
            # In a container the mount shows only a subtree of the hierarchy that /proc/self/cgroup speaks of.
            inside = member[len(mount_root) :] if mount_root != "/" and member.startswith(mount_root) else member
            directory = base / inside.lstrip("/")
            if ".." in Path(inside).parts or not directory.is_dir():
                directory = base
            while True:
                yield version, directory
                if directory == base:
                    break
                directory = directory.parent


def _cgroup_mounts(root: Path) -> Iterator[tuple[Literal[1, 2], str, str]]:
    """(version, root within the hierarchy, mount point) of every mount that can hold memory limits."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if not separator or len(fields) < 5 or len(kind) < 3:
            continue
        mount_root, mount_point = (field.encode().decode("unicode_escape") for field in fields[3:5])
        if kind[0] == "cgroup2":
            yield 2, mount_root, mount_point
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            yield 1, mount_root, mount_point


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """The integer that the file holds, or None if there is none (``max`` in cgroup v2)."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _kib_fields(path: Path) -> dict[str, int]:
    """Lines such as ``MemTotal:  1024 kB`` as bytes by name."""
    fields: dict[str, int] = {}
    for line in _lines(path):
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            fields[name] = int(words[0]) * 1024
    return fields


def _stat_fields(path: Path) -> dict[str, int]:
    """Lines such as ``file 4096`` as numbers by name."""
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}

"""What the disk under a directory offers: filesystem, space, O_DIRECT, read speed measured with a file of our own.

A measurement reads past the page cache (O_DIRECT, or dropping the cache where that is missing), yet a device or a
hypervisor may cache below it: the result is what this machine gives now, not what the medium is specified for.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import UsageError
from coterie.files.nearest import nearest_directory
from coterie.plan.machine import SYSTEM_ROOT
from coterie.records import LocalFile
from coterie.records.files import HAS_DIRECT

_ALIGNMENT = 4096
_SEQUENTIAL_BLOCK = 8 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """Where a directory lies.

    Attributes:
        path: The directory asked about, or its nearest existing ancestor.
        filesystem: Type such as ``ext4``; ``unknown`` off Linux.
        mount_point: Where the filesystem is mounted.
        device: What is mounted there, as the kernel names it.
        total: Size of the filesystem in bytes.
        free: Bytes that this user can still write.
        direct_io: Whether reads with O_DIRECT work there; None if no file could be written to find out.
    """

    path: Path
    filesystem: str
    mount_point: str
    device: str
    total: int
    free: int
    direct_io: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSpeed:
    """One measurement.

    Attributes:
        pattern: ``sequential`` or ``random``.
        block: Bytes per read.
        depth: Reads in flight at once.
        nbytes: Bytes read in all.
        seconds: Time taken.
        direct: Whether O_DIRECT was used.
    """

    pattern: str
    block: int
    depth: int
    nbytes: int
    seconds: float
    direct: bool

    @property
    def bytes_per_second(self) -> float:
        """Throughput."""
        return self.nbytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_per_read(self) -> float:
        """Mean latency of one read as its issuer saw it."""
        reads = self.nbytes / self.block
        return self.seconds * self.depth / reads if reads else 0.0


def disk_facts(path: Path, *, root: Path = SYSTEM_ROOT) -> DiskFacts:
    """Describes the filesystem that ``path``, or its nearest existing ancestor directory, lies on."""
    directory = nearest_directory(path)
    mount_point, filesystem, device = _mount_of(directory, root)
    usage = shutil.disk_usage(directory)
    return DiskFacts(
        path=directory,
        filesystem=filesystem,
        mount_point=mount_point,
        device=device,
        total=usage.total,
        free=usage.free,
        direct_io=supports_direct_io(directory),
    )


def disk_identity(path: Path, *, root: Path = SYSTEM_ROOT) -> str:
    """Names the disk that ``path``, or its nearest existing ancestor directory, lies on, the same in every process.

    Device numbers change hands between boots; the filesystem, the device's name and model and, where the system knows
    it, the filesystem's UUID tell them apart.
    """
    directory = nearest_directory(path)
    number = directory.stat().st_dev
    name = f"{os.major(number)}:{os.minor(number)}" if hasattr(os, "major") else str(number)
    _, filesystem, device = _mount_of(directory, root)
    block = root / "sys/dev/block" / name
    # A partition's model is its disk's, one directory up.
    models = (block.resolve() / each / "device/model" for each in ("", ".."))
    facts = {
        "uuid": _filesystem_uuid(device, root),
        "model": next((text for model in models if (text := _first_line(model))), ""),
        "serial": _first_line(block / "serial"),
        "sectors": _first_line(block / "size"),
    }
    return " ".join([name, filesystem, device, *(f"{key}={value}" for key, value in facts.items() if value)])


def _filesystem_uuid(device: str, root: Path) -> str:
    directory = root / "dev/disk/by-uuid"
    try:
        wanted = (root / device.lstrip("/")).resolve()
        return next((link.name for link in sorted(directory.iterdir()) if link.resolve() == wanted), "")
    except OSError:
        return ""


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().partition("\n")[0]
    except OSError:
        return ""


def supports_direct_io(directory: Path) -> bool | None:
    """Whether a file in ``directory`` can be read with O_DIRECT; None if no file can be written there."""
    if not HAS_DIRECT:
        return False
    try:
        with _scratch_file(directory, _ALIGNMENT) as path:
            return _reads_directly(path)
    except OSError:
        return None


def measure_reads(
    directory: Path, *, nbytes: int = 128 * 2**20, seconds: float = 0.5, progress: Callable[[str], None] | None = None
) -> list[ReadSpeed]:
    """Writes a temporary file and reads it: in order, then at random in expert-sized blocks, one and four at a time.

    Args:
        directory: Where the file is made; it is gone afterwards.
        nbytes: Its size, a multiple of 8 MiB.
        seconds: Time allowed for each of the random patterns.
        progress: Called with a line about what is being measured.

    Raises:
        UsageError: If the file cannot be written there.
    """
    if nbytes <= 0 or nbytes % _SEQUENTIAL_BLOCK:
        raise UsageError(f"The size of the measured file must be a positive multiple of 8 MiB, not {nbytes} bytes.")
    tell = progress if progress is not None else lambda _line: None
    results: list[ReadSpeed] = []
    try:
        tell("writing the file to measure with")
        with _scratch_file(directory, nbytes) as path:
            direct = _reads_directly(path)
            tell("reading in order")
            results.append(_measure(path, "sequential", _SEQUENTIAL_BLOCK, 1, None, direct))
            for block in (128 * 2**10, 512 * 2**10, 2**20):
                for depth in (1, 4):
                    tell(f"random reads of {block // 2**10} KiB, {depth} at a time")
                    results.append(_measure(path, "random", block, depth, seconds, direct))
    except OSError as error:
        raise UsageError(
            f"Read speed cannot be measured in {directory}: {error.strerror or error}.",
            advice=f"It takes {nbytes // 2**20} MiB of free space in a writable directory; `--quick` leaves it out.",
            path=directory,
        ) from error
    return results


def _measure(path: Path, pattern: str, block: int, depth: int, seconds: float | None, direct: bool) -> ReadSpeed:
    """Reads every block of the file once, in order or shuffled, until all are read or the time is up."""
    size = path.stat().st_size
    offsets = list(range(0, size - block + 1, block))
    if pattern == "random":
        random.Random(block * depth).shuffle(offsets)
    if not direct:
        _drop_page_cache(path)
    start = time.perf_counter()
    deadline = None if seconds is None else start + seconds
    with ThreadPoolExecutor(depth) as pool:
        shares = [offsets[lane::depth] for lane in range(depth)]
        done = sum(pool.map(lambda share: _read_blocks(path, share, block, direct, deadline), shares))
    return ReadSpeed(
        pattern=pattern, block=block, depth=depth, nbytes=done, seconds=time.perf_counter() - start, direct=direct
    )


def _read_blocks(path: Path, offsets: list[int], block: int, direct: bool, deadline: float | None) -> int:
    """Reads blocks until the deadline, at least one; returns the bytes read."""
    done = 0
    # An anonymous mapping is page-aligned, as O_DIRECT requires of the buffer.
    with (
        mmap.mmap(-1, block) as buffer,
        memoryview(buffer) as view,
        closing(LocalFile(path).open("direct" if direct else "in order")) as file,
    ):
        for offset in offsets:
            done += file.read_at(view, offset)
            if deadline is not None and time.perf_counter() >= deadline:
                break
    return done


def _reads_directly(path: Path) -> bool:
    try:
        return HAS_DIRECT and _read_blocks(path, [0], _ALIGNMENT, True, None) == _ALIGNMENT
    except OSError:
        return False


@contextmanager
def _scratch_file(directory: Path, nbytes: int) -> Iterator[Path]:
    """A file of random bytes (filesystems that compress must not win), on disk, removed at the end."""
    descriptor, name = tempfile.mkstemp(prefix=".coterie-probe-", dir=directory)
    path = Path(name)
    try:
        try:
            for start in range(0, nbytes, _SEQUENTIAL_BLOCK):
                remaining = memoryview(os.urandom(min(_SEQUENTIAL_BLOCK, nbytes - start)))
                while remaining:
                    remaining = remaining[os.write(descriptor, remaining) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _drop_page_cache(path: Path) -> None:
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _mount_of(directory: Path, root: Path) -> tuple[str, str, str]:
    """(mount point, filesystem type, device) of the mount that holds the directory."""
    best = ("", "unknown", "unknown")
    resolved = directory.resolve()
    try:
        lines = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return best
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 2:
            continue
        point = fields[4].encode().decode("unicode_escape")
        # Later lines are mounted over earlier ones, hence "not shorter" rather than "longer".
        if resolved.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind[0], kind[1])
    return best

"""Cold caches: what lies in the page cache of a file, and how to get it out."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def files_of(path: Path) -> Iterator[Path]:
    """A file itself, or every file below a directory."""
    if path.is_file():
        yield path
    else:
        yield from sorted(each for each in path.rglob("*") if each.is_file())


def drop(paths: Iterable[Path]) -> None:
    """Writes the files back and takes them out of the page cache (works without privileges on one's own files)."""
    for path in paths:
        for file in files_of(path):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def cached_bytes(path: Path) -> int:
    """Bytes of a file that are in the page cache now."""
    size = path.stat().st_size
    if not size:
        return 0
    pages = -(-size // mmap.PAGESIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapping:
        start = ctypes.c_char.from_buffer(mapping)
        present = (ctypes.c_ubyte * pages)()
        library = ctypes.CDLL(None, use_errno=True)
        failed = library.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), present)
        del start
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return sum(each & 1 for each in present) * mmap.PAGESIZE


def drop_everything() -> None:
    """Empties the page cache of the whole machine, libraries included: what a cold start begins with.

    Raises:
        PermissionError: Without root.
    """
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")

"""Outputs appear whole or not at all, and what a path names stays what it is.

A regular file is replaced by one that is written beside it, with the same mode and owner. A link stays, and what it
leads to is replaced. Whatever has other names, or cannot be replaced, is written into; so are devices, FIFOs and the
descriptors that ``/dev/stdout`` and its like stand for, which get the whole output at the end.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from coterie.errors import OutputError, UsageError

_DESCRIPTORS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,6})")
_UNREPLACEABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV)
"""A folder that is read-only, or a file that is mounted by itself: its content can be written all the same."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to; what was written becomes the content of ``path`` if the block ends well.

    After an error what was there before is still there, and nothing is left beside it.

    Raises:
        OutputError: If it cannot be written: by the block, or at its end.
    """
    target = Path(path)
    try:
        with _partial(target) as partial:
            yield partial
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise OutputError(
            f"{path} cannot be written: {reason}.",
            advice="What was there before is unchanged. Free space on that disk, or write to another place."
            if error.errno in _FULL
            else "Check the path and its permissions.",
            path=target,
            errno=error.errno,
        ) from error


def check_writable(path: str | Path, *, appended: bool = False) -> None:
    """Finds before any work is done that an output cannot be written at its end.

    Args:
        path: Where it is to go.
        appended: It is written in place, if it is there.

    Raises:
        UsageError: If there is no such directory, it is one, or it or the file is read-only.
    """
    named = Path(path)
    if _descriptor(named) is not None:
        return
    target = _resolved(named).absolute()
    folder = target.parent
    if target.is_dir():
        raise UsageError(f"{named} is a directory; name a file in it.", path=path)
    if not folder.is_dir():
        raise UsageError(f"There is no directory {folder} to write {target.name} in.", path=path)
    in_place = target.exists() and (appended or not target.is_file() or not os.access(folder, os.W_OK))
    place = target if in_place else folder
    if not os.access(place, os.W_OK):
        raise UsageError(f"{named.name} cannot be written: {place} is read-only.", path=path)


@contextmanager
def _partial(named: Path) -> Iterator[Path]:
    descriptor = _descriptor(named)
    target = _resolved(named)
    before = None if descriptor is not None else _looked_at(target)
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise OSError(errno.EISDIR, "it is a directory", str(target))
    alone = before is None or (stat.S_ISREG(before.st_mode) and before.st_nlink == 1)
    into = descriptor is not None or not alone
    with ExitStack() as stack:
        beside = None if descriptor is not None else _beside(target, before)
        partial = beside or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coterie-"))) / target.name
        stack.callback(partial.unlink, missing_ok=True)
        yield partial
        if not into and beside is not None:
            if before is not None:
                _keep_access(beside, before)
            try:
                beside.replace(target)
                return
            except OSError as error:
                if before is None or error.errno not in _UNREPLACEABLE:
                    raise
        _write_into(partial, target, descriptor, before)


def _beside(target: Path, before: os.stat_result | None) -> Path | None:
    """A new, empty file beside the target, with the access that is usual there; None if it would be of no use."""
    if before is not None and not stat.S_ISREG(before.st_mode):
        return None
    try:
        # A name of its own: nobody else writes there, and nothing that lies ready under it is followed.
        partial = target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}.partial")
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666))
    except OSError as error:
        if before is None or error.errno not in _UNREPLACEABLE:
            raise
        return None
    return partial


def _keep_access(partial: Path, before: os.stat_result) -> None:
    if hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(partial, before.st_uid, before.st_gid)
    with suppress(OSError):
        partial.chmod(stat.S_IMODE(before.st_mode))


def _write_into(partial: Path, target: Path, descriptor: int | None, before: os.stat_result | None) -> None:
    """Copies the output into what is there, once it is certain that it fits."""
    with ExitStack() as stack:
        source = stack.enter_context(partial.open("rb"))
        if descriptor is None:
            out = stack.enter_context(os.fdopen(os.open(target, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0)), "wb"))
        else:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()  # what was printed before comes before
            out = stack.enter_context(os.fdopen(os.dup(descriptor), "wb"))
        regular = before is not None and stat.S_ISREG(before.st_mode)
        size = os.fstat(source.fileno()).st_size
        if regular and before is not None and size > before.st_size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(out.fileno(), 0, size)
            except OSError as error:
                os.ftruncate(out.fileno(), before.st_size)
                if error.errno in _FULL:
                    raise
        shutil.copyfileobj(source, out)
        out.flush()
        if regular:
            os.ftruncate(out.fileno(), size)


def _descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path stands for; opened by name, it would begin where the file begins."""
    text = os.path.abspath(path)  # noqa: PTH100 - Path.resolve would follow the link, which is what it is known by
    match = _DESCRIPTOR.fullmatch(text)
    return int(match[1]) if match else _DESCRIPTORS.get(text)


def _resolved(path: Path) -> Path:
    """Where a link leads, also if nothing is there yet."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _looked_at(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except ValueError as error:  # a null byte, or half of a surrogate pair
        raise OSError(errno.EINVAL, "this is not a name of a file", str(path)) from error

"""Which file, in which state: what tells one file from another that took its place, or from itself rewritten."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """The identity of a file and the time of its last change.

    Attributes:
        device: Number of the file system.
        inode: Number of the file in it.
        nbytes: Its size.
        mtime_ns: When its content last changed, in nanoseconds.
        links: Whether its name may be that of a symbolic link, as all are in the Hub's cache; in a store none may.
    """

    device: int
    inode: int
    nbytes: int
    mtime_ns: int
    links: bool = field(default=True, compare=False)

    @classmethod
    def of(cls, found: os.stat_result, *, links: bool = True) -> FileStamp:
        """The stamp of a file that was looked at."""
        return cls(
            device=found.st_dev, inode=found.st_ino, nbytes=found.st_size, mtime_ns=found.st_mtime_ns, links=links
        )

    def change(self, now: FileStamp) -> str | None:
        """What has happened to the file since, in words that follow its name; None if nothing has."""
        if (self.device, self.inode) != (now.device, now.inode):
            return "was replaced by another file after it was first opened"
        if self != now:
            return "was written to after it was first opened"
        return None

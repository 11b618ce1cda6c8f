"""Processes of workers, to be killed."""

from __future__ import annotations

import os
import re
from pathlib import Path


def worker_pids() -> list[int]:
    """Processes of workers that are descendants of this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::CoterieWorker") and descends(int(folder.name)):
                found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


def descends(pid: int) -> bool:
    """Whether a process was started by this one, or by one that was."""
    while pid > 1:
        parent = re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        assert parent is not None
        pid = int(parent[1])
        if pid == os.getpid():
            return True
    return False

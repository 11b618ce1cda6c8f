"""Runs a script in a process of its own, with limits of memory and time: for programs of strangers.

Run as a script: memory in bytes, seconds of processor time, the script, and folders that its packages are in. The
process sets its own limits before it reads anything, and ends with the request.
"""

from __future__ import annotations

import runpy
import sys


def limit(memory: int, seconds: int) -> None:
    """No more memory and processor time than this, nor files, for this process."""
    import signal

    # Ctrl-C is the caller's; it ends this process if it wants to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource
    except ImportError:  # Windows: the caller's clock is the limit
        return
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))


def main() -> None:
    """Limits this process, and runs the script."""
    memory, seconds, script, *folders = sys.argv[1:]
    limit(int(memory), int(seconds))
    sys.path[:0] = folders
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()

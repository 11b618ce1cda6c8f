"""Runs a command inside a memory cgroup, v1 or v2, and samples what its processes hold while it runs.

A cgroup's own usage counts the page cache too, which the kernel gives back under pressure; what decides between life
and death is anonymous memory plus the mapped pages of libraries, which thrash when they are squeezed out. Those two are
sampled per process from ``/proc/PID/status``: ``RssAnon``, ``RssFile`` and ``RssShmem`` (shared pages count once for
each process that maps them, so a sum over several processes is an upper bound), beside the kernel's own high-water mark
of their sum, ``VmHWM``, which no sampling misses.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_INTERVAL_S = 0.01
_ENTER = 'echo $$ > "$0" && exec "$@"'
_numbers = itertools.count()


class CgroupUnavailable(Exception):
    """No memory cgroup can be made here; the message says why."""


@dataclass(kw_only=True)
class CgroupRun:
    """What a command did and held. All sizes in bytes.

    Attributes:
        limit: Limit of the cgroup, or None.
        returncode: Exit status; negative for a signal.
        stdout: What it printed.
        stderr: Its messages.
        seconds: Wall clock.
        samples: How often memory was looked at.
        anonymous: Greatest sampled anonymous and shared memory.
        mapped: Greatest sampled mapped file pages.
        resident: Greatest sampled sum of both at one moment.
        high_water: Greatest sum of the processes' own high-water marks of that.
        usage: Greatest usage that the cgroup charged, page cache included; 0 outside one.
        reclaims: Times that the cgroup reached its limit and had to give pages back.
        oom_kills: Processes that the kernel killed for memory.
    """

    limit: int | None
    returncode: int = 0
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    samples: int = 0
    anonymous: int = 0
    mapped: int = 0
    resident: int = 0
    high_water: int = 0
    usage: int = 0
    reclaims: int = 0
    oom_kills: int = 0
    marks: dict[int, int] = field(default_factory=dict, repr=False)

    @property
    def killed(self) -> bool:
        """Whether the kernel's memory killer struck."""
        return self.oom_kills > 0 or self.returncode in (-9, 137)

    def take(self, processes: Sequence[int]) -> None:
        """Looks at the processes once."""
        anonymous = mapped = 0
        for process in processes:
            status = _status(process)
            anonymous += status.get("RssAnon", 0) + status.get("RssShmem", 0)
            mapped += status.get("RssFile", 0)
            self.marks[process] = max(self.marks.get(process, 0), status.get("VmHWM", 0))
        self.samples += 1
        self.anonymous = max(self.anonymous, anonymous)
        self.mapped = max(self.mapped, mapped)
        self.resident = max(self.resident, anonymous + mapped)
        self.high_water = max(self.high_water, sum(self.marks.get(process, 0) for process in processes))


@dataclass(frozen=True)
class MemoryCgroup:
    """A cgroup directory made for one command."""

    version: int
    path: Path

    def limit(self, nbytes: int) -> None:
        """Sets the limit, swap included."""
        if self.version == 1:
            (self.path / "memory.limit_in_bytes").write_text(str(nbytes))
            with contextlib.suppress(OSError):
                (self.path / "memory.memsw.limit_in_bytes").write_text(str(nbytes))
        else:
            (self.path / "memory.max").write_text(str(nbytes))
            with contextlib.suppress(OSError):
                (self.path / "memory.swap.max").write_text("0")

    def processes(self) -> list[int]:
        """Ids of the processes in it."""
        return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]

    def peak_usage(self) -> int:
        """Greatest usage so far, page cache included; 0 where the kernel does not keep it."""
        return _number(self.path / ("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"))

    def reclaims(self) -> int:
        """Times that usage reached the limit."""
        if self.version == 1:
            return _number(self.path / "memory.failcnt")
        return _words(self.path / "memory.events").get("max", 0)

    def oom_kills(self) -> int:
        """Processes killed for memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _words(self.path / name).get("oom_kill", 0)


@contextlib.contextmanager
def memory_cgroup(limit: int | None = None) -> Iterator[MemoryCgroup]:
    """Makes a memory cgroup and removes it afterwards.

    Raises:
        CgroupUnavailable: If none can be made.
    """
    version, parent = _parent()
    path = parent / f"coterie-{os.getpid()}-{next(_numbers)}"
    try:
        path.mkdir()
    except OSError as error:
        raise CgroupUnavailable(f"no cgroup can be made in {parent}: {error.strerror}") from error
    cgroup = MemoryCgroup(version, path)
    try:
        if limit is not None:
            cgroup.limit(limit)
        yield cgroup
    finally:
        _remove(path)


def why_unavailable() -> str | None:
    """Why no memory cgroup can be made here, or None if one can."""
    try:
        with memory_cgroup(1 << 30):
            return None
    except CgroupUnavailable as reason:
        return str(reason)
    except OSError as error:
        return f"a cgroup cannot be given a limit: {error.strerror}"


def run_in_cgroup(
    command: Sequence[str | Path],
    limit: int | None,
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> CgroupRun:
    """Runs a command in a memory cgroup of its own and samples its memory until it ends.

    Args:
        command: Program and arguments.
        limit: Bytes, or None for none.
        env: Added to the environment.
        timeout_s: Kills the command after that.

    Raises:
        CgroupUnavailable: If no cgroup can be made.
        subprocess.TimeoutExpired: After ``timeout_s``.
    """
    with memory_cgroup(limit) as cgroup:
        entering = ["/bin/sh", "-c", _ENTER, str(cgroup.path / "cgroup.procs"), *map(str, command)]
        run = run_sampled(entering, env=env, timeout_s=timeout_s, cgroup=cgroup)
        run.limit = limit
        run.usage, run.reclaims, run.oom_kills = cgroup.peak_usage(), cgroup.reclaims(), cgroup.oom_kills()
    return run


def run_sampled(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    cgroup: MemoryCgroup | None = None,
) -> CgroupRun:
    """Runs a command and samples its memory: all processes of its cgroup, or without one the process itself."""
    run = CgroupRun(limit=None)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **(env or {})})
        try:
            while process.poll() is None:
                run.take(cgroup.processes() if cgroup is not None else [process.pid])
                if timeout_s is not None and time.perf_counter() - began > timeout_s:
                    raise subprocess.TimeoutExpired(command, timeout_s)
                time.sleep(_INTERVAL_S)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        run.seconds = time.perf_counter() - began
        run.returncode = process.returncode
        for name, file in (("stdout", out), ("stderr", err)):
            file.seek(0)
            setattr(run, name, file.read().decode(errors="replace"))
    return run


def _parent() -> tuple[int, Path]:
    """Where a memory cgroup can be made: below this process's own (v1), or beside it or an ancestor (v2)."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, member in lines:
        if "memory" in controllers.split(","):
            own = _CGROUPS / "memory" / member.lstrip("/")
            # In a container the path can speak of a hierarchy that is not mounted here.
            return 1, own if own.is_dir() else _CGROUPS / "memory"
    for _, controllers, member in lines:
        if not controllers:
            path = _CGROUPS / member.lstrip("/")
            while path != _CGROUPS.parent:
                # Processes live in leaves only, so the parent must be a directory that hands the controller down.
                if "memory" in _text(path / "cgroup.subtree_control").split():
                    return 2, path
                path = path.parent
            raise CgroupUnavailable("no cgroup above this process hands its memory controller down")
    raise CgroupUnavailable("this process is in no memory cgroup")


def _remove(path: Path) -> None:
    for _ in range(100):
        try:
            path.rmdir()
        except OSError:
            time.sleep(0.02)  # the last process is still being taken apart
        else:
            return


def _status(process: int) -> dict[str, int]:
    fields = {}
    for line in _text(Path(f"/proc/{process}/status")).splitlines():
        if line.endswith(" kB"):
            name, value, _ = line.split()
            fields[name[:-1]] = int(value) * 1024
    return fields


def _words(path: Path) -> dict[str, int]:
    return {line.split()[0]: int(line.split()[1]) for line in _text(path).splitlines()}


def _number(path: Path) -> int:
    return int(_text(path).strip() or 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

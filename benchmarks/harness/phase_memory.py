"""What the process held at most in each of several phases, by the kernel's own mark."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"


class PhaseMemory:
    """The greatest resident memory of each phase: anonymous, shared and mapped pages.

    The kernel keeps the mark, so nothing is missed between two looks; it is reset where a phase begins (Linux).

    Args:
        phase: Name of the first phase.

    Attributes:
        peaks: Phase → bytes, of phases that have ended.
        phase: The one that goes on.
    """

    def __init__(self, phase: str) -> None:
        self.peaks: dict[str, int] = {}
        self.phase = phase
        _CLEAR.write_text(_FORGET_PEAK)

    def enter(self, phase: str) -> None:
        """The phase that went on ends and another one begins, or goes on after it was left."""
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), high_water())
        self.phase = phase
        _CLEAR.write_text(_FORGET_PEAK)


def high_water() -> int:
    """Greatest resident memory since the mark was reset, in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")

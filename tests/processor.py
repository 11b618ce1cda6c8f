"""Whose processor the tests run on."""

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

INTEL = _CPUINFO.exists() and "GenuineIntel" in _CPUINFO.read_text()
"""Whether it is one of Intel's, for which MKL has other routines than for the rest."""

"""The native library as built for another processor, at work under emulation: called as if it were loaded here.

The emulated process (emulated.c) has no memory of ours. It asks for pages when they are touched and sends back which
bytes have changed, so every pointer means the same to both, and the wrappers in ``coterie.native`` notice nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import resource
import shutil
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from coterie.native import build
from coterie.native.library import PROTOTYPES

REQUIRED = "COTERIE_REQUIRE_AARCH64"
"""Where this is set, a missing cross-compiler or emulator is a failure: CI must not skip these tests."""


class Architecture(NamedTuple):
    """What programs of a kind of processor are compiled and run with."""

    compiler: str
    emulator: str
    root: str


AARCH64 = Architecture("aarch64-linux-gnu-gcc", "qemu-aarch64", "/usr/aarch64-linux-gnu")
X86_64 = Architecture("cc", "qemu-x86_64", "/")
"""On a machine of that kind: for lesser processors than it has."""

PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
"""Where Debian and Ubuntu have them."""

_SERVER = Path(__file__).with_name("emulated.c")
_CALL = struct.Struct("=48sq16qf4x")
_MESSAGE = struct.Struct("=qqq")
_STARTS = 20
_STACK = 8 << 20


def missing(architecture: Architecture = AARCH64) -> str | None:
    """What is not installed here, or None."""
    lacking = [name for name in (architecture.compiler, architecture.emulator) if shutil.which(name) is None]
    return f"{' and '.join(lacking)} not found (Debian and Ubuntu: apt install {PACKAGES})" if lacking else None


class Programs(NamedTuple):
    """What is compiled for the other processor."""

    library: Path
    server: Path


def compiled(folder: Path) -> Programs:
    """The library, by its own build script, and the program that serves it; kept until a source changes."""
    content = _SERVER.read_bytes() + Path(build.__file__).read_bytes()
    kept = folder / hashlib.sha256(build.fingerprint().encode() + content).hexdigest()[:16]
    programs = Programs(kept / "libcoterie.so", kept / "emulated")
    # Processes of the same test session wait for the first one.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not programs.server.exists():
            for old in (path for path in folder.iterdir() if path.is_dir()):
                shutil.rmtree(old)
            kept.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("CC", AARCH64.compiler)
                build.build(programs.library)
            compile_server(programs.server)
    return programs


def compile_server(path: Path, architecture: Architecture = AARCH64) -> Path:
    """The program that serves a library."""
    # What the program has in place of the C library's is the library's, too.
    flags = ["-std=gnu11", "-O2", "-Wall", "-Werror", "-rdynamic"]
    command = [architecture.compiler, *flags, str(_SERVER), "-ldl", "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return path


class EmulatedFunctions:
    """The functions of a library, as ``ctypes.CDLL`` would have them.

    Args:
        programs: Such as those of :func:`compiled`.
        processor: One that the emulator knows.
        architecture: What the programs were compiled for.
    """

    def __init__(self, programs: Programs, processor: str, architecture: Architecture = AARCH64) -> None:
        emulator = [architecture.emulator, "-L", architecture.root, "-cpu", processor]
        self._command = [*emulator, str(programs.server), str(programs.library)]
        self._memory = os.open("/proc/self/mem", os.O_RDWR)
        self._lock = threading.Lock()
        self._process = self._started()

    def close(self) -> None:
        """Ends the process."""
        self._end()
        os.close(self._memory)

    def __getattr__(self, name: str) -> Any:
        if name not in PROTOTYPES:
            raise AttributeError(name)
        return lambda *arguments: self._call(name, arguments)

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)

    def _started(self) -> subprocess.Popen[bytes]:
        # With a stack of any size the emulator's own memory lies in the middle of the address space, far from ours.
        command = ["sh", "-c", 'ulimit -s unlimited 2>/dev/null; exec "$@"', "sh", *self._command]
        for _ in range(_STARTS):
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            _, fingerprint = self._answer("coterie_fingerprint", _packed("coterie_fingerprint", ()))
            # But it must not grow like that: it would take in any page below that is touched, and ours lie there, too.
            resource.prlimit(self._process.pid, resource.RLIMIT_STACK, (_STACK, _STACK))
            assert fingerprint.decode() == build.fingerprint()
            ours, theirs = _mapped("self"), _mapped(str(self._process.pid))
            if not any(a < d and c < b for a, b in ours for c, d in theirs):
                return self._process
            self._end()
        raise AssertionError("the emulator's memory lies where ours does, time and again")

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        call = _packed(name, arguments)
        with self._lock:
            at, text = self._answer(name, call)
        result, _ = PROTOTYPES[name]
        if result is ctypes.c_char_p:
            return text if at else None
        return None if result is None else result(at).value

    def _answer(self, name: str, call: bytes) -> tuple[int, bytes]:
        """What a call returns, and the text at that address."""
        self._why = ""
        self._send(call)
        while True:
            kind, at, size = _MESSAGE.unpack(self._receive(_MESSAGE.size))
            if chr(kind) == "D":
                return at, self._receive(size)
            self._serve(chr(kind), name, at, size)

    def _serve(self, kind: str, name: str, at: int, size: int) -> None:
        if kind == "R":
            try:
                pages = os.pread(self._memory, size, at)
            except OSError as error:
                pages, self._why = b"", f" ({error})"
            self._send(struct.pack("=q", len(pages)) + pages)
        elif kind == "W":
            os.pwrite(self._memory, self._receive(size), at)
        else:
            reasons = {"F": "touched memory that is not there", "C": "cannot have our page", "N": "is not there"}
            problem = f"{name} {reasons.get(kind, 'needs too many pages')}: {at:#x}{self._why}"
            here, there = _beside(at, "self"), _beside(at, str(self._process.pid))
            raise AssertionError(f"{problem}; here: {here}; there: {there}")

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def _receive(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        assert len(data) == size, f"{self._command} ended: {data!r}"
        return data


def _packed(name: str, arguments: tuple[Any, ...]) -> bytes:
    """A call as it is sent."""
    result, types = PROTOTYPES[name]
    assert len(arguments) == len(types), name
    floats = [value for value, kind in zip(arguments, types, strict=True) if kind is ctypes.c_float]
    wholes = [int(value or 0) for value, kind in zip(arguments, types, strict=True) if kind is not ctypes.c_float]
    assert len(floats) <= 1
    wholes += [0] * (16 - len(wholes))
    return _CALL.pack(name.encode(), result is ctypes.c_char_p, *wholes, *floats or (0.0,))


def _beside(address: int, process: str) -> list[str]:
    """What a process has mapped within a mebibyte of an address."""
    return [f"{begin:x}-{end:x}" for begin, end in _mapped(process) if begin - (1 << 20) < address < end + (1 << 20)]


def _mapped(process: str) -> list[tuple[int, int]]:
    """Where a process has memory, but for what the kernel puts everywhere."""
    found = []
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        if not line.endswith("[vsyscall]"):
            begin, end = line.split()[0].split("-")
            found.append((int(begin, 16), int(end, 16)))
    return found

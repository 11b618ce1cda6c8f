"""Hostile values for files of strangers, and a watch over what reading them takes. Seeded: a case is a number."""

from __future__ import annotations

import copy
import os
import random
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coterie.errors import CoterieError

SECONDS = 10
WAITING = 60
"""Seconds of the processor, and seconds of the clock: a busy machine is no hang."""

MEMORY = 2**30


def cases(default: int) -> int:
    """How many cases to try: ``COTERIE_FUZZ`` times as many as usual."""
    return int(default * float(os.environ.get("COTERIE_FUZZ", "1")))


def hostile(rng: random.Random) -> Any:
    """A value that somebody may write where a number, a text or a list stands."""
    deep: Any = 0
    for _ in range(rng.choice((3, 40, 80))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice(
        (
            None, True, False, 0, 1, -1, 2, 3, 7, 100, 4097, 65_537, 10**6, 10**7, 2**31, 2**53, 2**63, -(2**63),
            10**19, 10**30, 0.0, -0.5, 0.5, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"),
            "", "8", "0", "auto", "true", "\x00", "\ud800", "é" * 50, "a" * 5000, "../x", "/etc/passwd", "__name__",
            "..", "\x1b[2J\x1b]0;x\x07", "0" * 32, "AAAA", "eNoDAAAAAAE=",
            "torch", "bfloat16", "float8_e4m3fn", "int8", "flash_attention_2", "evil/kernel", "full_attention",
            [], {}, [[]], [None], [1], [0, 0], [-1], ["a"], [1.5] * 3, [10**9], list(range(300)), {"a": 1}, {"": {}},
            {"model_type": "qwen3"}, {"rope_type": "yarn"}, {"rope_type": "default", "rope_theta": 0}, deep,
        )
    )  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a value, itself included."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Replaces the value at a path; takes it out if it is Ellipsis."""
    holder, key = inner(value, path[:-1]), path[-1]
    if new is ...:
        del holder[key]
    else:
        holder[key] = new


def inner(value: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path."""
    for key in path:
        value = value[key]
    return value


def descent(value: Any, rng: random.Random) -> tuple[Any, ...]:
    """The path of some value, found from the top: a large part of a file is not more likely than a small one."""
    path: tuple[Any, ...] = ()
    while isinstance(value, dict | list) and value and (not path or rng.random() < 0.9):
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        path, value = (*path, key), value[key]
    return path


def mutate(value: Any, rng: random.Random, extra: tuple[str, ...] = ()) -> Any:
    """Changes one to three places of a parsed JSON value in place."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(leaves(value))
        if not places or (extra and rng.random() < 0.2):
            if isinstance(value, dict):
                value[rng.choice((*extra, "x"))] = hostile(rng)
            continue
        change(value, rng.choice(places) if rng.random() < 0.5 else descent(value, rng), rng)
    return value


def change(value: Any, place: tuple[Any, ...], rng: random.Random) -> None:
    """Changes one place: it goes, comes twice, is a little more or less, or something that nobody expects."""
    kind, old = rng.random(), inner(value, place)
    if kind < 0.1:
        put(value, place, ...)
    elif kind < 0.2 and isinstance(place[-1], int):
        inner(value, place[:-1]).append(copy.deepcopy(old))
    elif kind < 0.35 and type(old) is int:
        put(value, place, old + rng.choice((-4096, -1, 1, 4096)))
    elif kind < 0.35 and isinstance(old, str):
        put(value, place, old[: rng.randrange(len(old) + 1)])
    else:
        put(value, place, hostile(rng))


def damage(data: bytes, rng: random.Random) -> bytes:
    """Changes bytes of a binary file, most of them near its beginning, where formats have their headers; may cut it."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 10))):
        place = rng.randrange(min(len(damaged), rng.choice((9, 44, 200, len(damaged)))))
        damaged[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    if rng.random() < 0.2:
        del damaged[rng.randrange(len(damaged)) :]
    return bytes(damaged)


def scramble(data: bytes, rng: random.Random) -> bytes:
    """Changes bytes: flips, cuts, doubles, or puts some of somewhere else."""
    text = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(text) + 1)
        to = min(len(text), at + rng.choice((1, 1, 2, 30)))
        text[at:to] = rng.choice(
            (b"", bytes([rng.randrange(256)]), bytes(text[at:to]) * 2, b"9" * 5000, b"[" * 70, b",", b"\xff", b'"')
        )
    return bytes(text)


class _Hang(KeyboardInterrupt):
    """A case took too long. An interrupt passes whatever turns errors into others."""


class Watch:
    """Runs cases and notes which did not end in a result or in an error of Coterie, in time and within memory.

    Args:
        errors: What a case may raise.
    """

    def __init__(self, errors: type[CoterieError] = CoterieError) -> None:
        self._errors = errors
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []

    def run(self, case: int, call: Callable[[], object]) -> None:
        """Runs one case."""
        _reset_peak()
        before = _memory("VmRSS")
        try:
            with _time_limit():
                call()
            self.outcomes["opened"] += 1
        except self._errors as error:
            str(error).encode()  # it can be printed
            self.outcomes[type(error).__name__] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not isinstance(error, _Hang):
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            self._fail(case, f"{type(error).__name__}: {str(error)[:200]!r} at {last.filename}:{last.lineno}")
        grown = _memory("VmHWM") - before
        if grown > MEMORY:
            self._fail(case, f"{grown:,} bytes of memory")

    def _fail(self, case: int, what: str) -> None:
        self.outcomes["failed"] += 1
        self.failures.append(f"case {case}: {what}")

    def check(self) -> None:
        """Fails if a case did, or if none was accepted; prints how they ended."""
        print(dict(self.outcomes), *self.failures[:10], sep="\n")
        assert not self.failures, f"{len(self.failures)} failed, such as " + "; ".join(self.failures[:10])
        assert self.outcomes["opened"], (
            f"Nothing was accepted, so what is behind the first look was not reached: {self}"
        )

    def __repr__(self) -> str:
        return f"Watch({dict(self.outcomes)})"


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, _: object) -> None:
        raise _Hang(f"signal {number}: more than {SECONDS} s of work or {WAITING} s in all")

    timers = {signal.SIGALRM: (signal.ITIMER_REAL, WAITING), signal.SIGPROF: (signal.ITIMER_PROF, SECONDS)}
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _memory(what: str) -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith(f"{what}:")), "")
    return int(line.split()[1]) * 1024 if line else 0

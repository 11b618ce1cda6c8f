"""What is measured of an engine, and what came out."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, field

from fullsize.walk import TOKEN_LENGTH, token_of
from harness.streamed import StreamedRun


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of an engine: a prompt and greedy decoding from a cold page cache.

    Attributes:
        name: For people and for results.
        limit: Bytes of the memory cgroup, or None.
        budget: Bytes that an engine which keeps a budget is given; by default the limit.
        prompt_tokens: Tokens of the prompt, the walk's first.
        new_tokens: Tokens to generate.
        settle_tokens: Of these, so many decode steps come before measuring begins.
        warm: Whether the model is brought into memory first, as far as the engine can do that.
        busy: Whether a process that does nothing but turn runs beside it.
        timeout_s: The run ends after that, with the tokens that have come.
    """

    name: str
    limit: int | None
    budget: int | None = None
    prompt_tokens: int
    new_tokens: int
    settle_tokens: int
    warm: bool = False
    busy: bool = False
    timeout_s: float = 600.0

    @property
    def memory(self) -> int | None:
        """The budget of an engine that keeps one."""
        return self.budget or self.limit


@dataclass(kw_only=True)
class Outcome:
    """What one run showed.

    Attributes:
        engine: Name of the engine.
        case: Name of the case.
        failure: Why there are no figures, or only some; empty if all went well.
        tokens: Ids generated.
        expected: Whether they are the walk's.
        first_token_s: From the start of the process to its first token.
        prefill_tokens_per_s: Tokens of the prompt per second, as the engine itself counts, without opening the model.
        steps_s: Seconds of each measured decode step, by the arrival of tokens.
        decode_read_bytes: Bytes read from disk during these.
        read_bytes: Bytes read from disk in all.
        resident: Greatest sampled anonymous and mapped memory.
        high_water: The kernel's own mark of it.
        usage: Greatest usage of the cgroup, page cache included.
        reclaims: Times that the cgroup reached its limit.
        oom_kills: Processes killed for memory.
        seconds: The whole run.
        own: The engine's own report.
        cut_short: Whether it ended well and yet the end of its output is missing.
    """

    engine: str
    case: str
    failure: str = ""
    tokens: list[int] = field(default_factory=list)
    expected: bool = False
    first_token_s: float | None = None
    prefill_tokens_per_s: float | None = None
    steps_s: list[float] = field(default_factory=list)
    decode_read_bytes: int = 0
    read_bytes: int = 0
    resident: int = 0
    high_water: int = 0
    usage: int = 0
    reclaims: int = 0
    oom_kills: int = 0
    seconds: float = 0.0
    own: dict[str, object] = field(default_factory=dict)
    cut_short: bool = False

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Measured tokens per second, None if there are none (or all of them came at once)."""
        took = sum(self.steps_s)
        return len(self.steps_s) / took if took else None

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes read from disk per measured decode step."""
        return self.decode_read_bytes / len(self.steps_s) if self.steps_s else None


def outcome_of(engine: str, case: Case, run: StreamedRun, walk: list[int], *, echoes: bool = False) -> Outcome:
    """What a run showed.

    Args:
        engine: Its engine.
        case: What it was to do.
        run: What it did.
        walk: The tokens that greedy decoding must give.
        echoes: Whether the engine prints the prompt before the answer, and figures after it.
    """
    arrivals = run.arrivals(TOKEN_LENGTH)
    if echoes:
        arrivals = arrivals[case.prompt_tokens :][: case.new_tokens]
    tokens = [token_of(piece.text) if piece.text.isalnum() and piece.text.isascii() else -1 for piece in arrivals]
    outcome = Outcome(
        engine=engine,
        case=case.name,
        failure=_failure(run, case, len(tokens)),
        tokens=tokens,
        expected=bool(tokens) and tokens == walk[: len(tokens)],
        first_token_s=arrivals[0].at_s if arrivals else None,
        read_bytes=run.read_bytes,
        resident=run.resident,
        high_water=run.high_water,
        usage=run.usage,
        reclaims=run.reclaims,
        oom_kills=run.oom_kills,
        seconds=run.seconds,
    )
    # Of a run that was ended early, all steps count: its first are no faster than the rest.
    settle = case.settle_tokens if len(arrivals) > case.settle_tokens + 1 else 0
    if len(arrivals) > settle + 1:
        measured = arrivals[settle:]
        outcome.steps_s = [after.at_s - before.at_s for before, after in itertools.pairwise(measured)]
        outcome.decode_read_bytes = measured[-1].read_bytes - measured[0].read_bytes
    return outcome


def _failure(run: StreamedRun, case: Case, tokens: int) -> str:
    if run.killed and not run.timed_out:
        return "killed for memory"
    if run.timed_out:
        return f"ended after {case.timeout_s:.0f} s with {tokens} of {case.new_tokens} tokens"
    if run.returncode:
        return f"ended with {run.returncode}: {run.stderr.strip().splitlines()[-1] if run.stderr.strip() else ''}"
    return "" if tokens == case.new_tokens else f"gave {tokens} of {case.new_tokens} tokens"


def median_and_quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median, first and third quartile (the extremes where there are fewer than four values)."""
    if len(values) < 4:
        return statistics.median(values), min(values), max(values)
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high

"""What the benchmark runs: models, memory cgroups, cases, and what is required of their outcomes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from peers.case import Case
from peers.tables import Requirement

GIB = 1 << 30
MIB = 1 << 20
MMAP, REPACKED, OURS = "llama.cpp mmap", "llama.cpp repacked", "coterie"


@dataclass(frozen=True)
class Sizes:
    """How large a run of the benchmark is.

    Attributes:
        shape: The model.
        limits: Memory cgroups, bytes.
        prefill_limits: Those in which long prompts are measured, too.
        prompt: Tokens of the short prompt.
        long_prompt: Tokens of the long one.
        settle: Decode steps before measuring begins.
        decode: Measured decode steps.
        trace: Decode steps of the recorded routing.
        stock_shape: The model that peers get which read bfloat16 alone.
        stock_limit: Their memory cgroup.
        answer: Tokens that engines which stream experts generate, all of them measured.
        memory_after: Of these, the number after which the cache's memory is looked at.
        big_moe_caches: Sizes of BigMoeOnEdge's cache to try, in its MB.
        streaming_limit: The memory cgroup of those.
    """

    shape: str
    limits: tuple[int, ...]
    prefill_limits: tuple[int, ...]
    prompt: int
    long_prompt: int
    settle: int
    decode: int
    trace: int
    stock_shape: str
    stock_limit: int
    answer: int
    memory_after: int
    big_moe_caches: tuple[int, ...]
    streaming_limit: int


FULL = Sizes(
    shape="qwen3-30b-a3b",
    limits=(6 * GIB, 8 * GIB, 12 * GIB),
    prefill_limits=(8 * GIB,),
    prompt=32,
    long_prompt=512,
    settle=16,
    decode=48,
    trace=512,
    stock_shape="four-layers",
    stock_limit=4 * GIB,
    answer=256,
    memory_after=32,
    big_moe_caches=(4500, 5500, 6000),
    streaming_limit=8 * GIB,
)
QUICK = Sizes(
    shape="small",
    limits=(768 * MIB,),
    prefill_limits=(768 * MIB,),
    prompt=32,
    long_prompt=64,
    settle=4,
    decode=12,
    trace=64,
    stock_shape="small",
    stock_limit=GIB,
    answer=48,
    memory_after=32,
    big_moe_caches=(16, 24),
    streaming_limit=768 * MIB,
)


def size_name(nbytes: int) -> str:
    """``8 GiB``."""
    return f"{nbytes / GIB:g} GiB" if nbytes % GIB == 0 else f"{nbytes / MIB:.0f} MiB"


def requirements(sizes: Sizes) -> list[Requirement]:
    """What is asked of full-size runs; quick runs show the same rows, of the limits that they have."""
    best = (MMAP, REPACKED)
    wanted = [
        Requirement(f"start in {size_name(8 * GIB)}", "decode", (MMAP,), 8.0),
        Requirement(f"start in {size_name(12 * GIB)}", "decode", (MMAP,), 2.5),
        Requirement("in memory", "decode", best, 1.0),
        Requirement("in memory", "prefill", best, 1.5),
        Requirement(f"long prompt in {size_name(8 * GIB)}", "prefill", (MMAP,), 3.0),
        Requirement(f"start in {size_name(8 * GIB)}", "first token", (MMAP,), 1.5),
    ]
    if sizes is QUICK:
        limit = size_name(sizes.limits[0])
        wanted += [Requirement(f"start in {limit}", metric, (MMAP,), 1.0) for metric in ("decode", "first token")]
    return wanted


def contest_cases(sizes: Sizes, timeout_s: float, limited_timeout_s: float | None = None) -> list[tuple[Case, bool]]:
    """The cases, and whether a peer that holds all of the model in memory takes part.

    Args:
        sizes: How large.
        timeout_s: A run ends after that.
        limited_timeout_s: One in a memory cgroup after that: a few tokens say how fast it decodes.
    """
    limited_s = timeout_s if limited_timeout_s is None else limited_timeout_s
    short = {
        "prompt_tokens": sizes.prompt,
        "new_tokens": 1 + sizes.settle + sizes.decode,
        "settle_tokens": sizes.settle,
    }
    cases = []
    for limit in sizes.limits:
        cases.append((Case(name=f"start in {size_name(limit)}", limit=limit, timeout_s=limited_s, **short), False))
    for limit in sizes.prefill_limits:
        name = f"long prompt in {size_name(limit)}"
        case = Case(
            name=name,
            limit=limit,
            prompt_tokens=sizes.long_prompt,
            new_tokens=2,
            settle_tokens=0,
            timeout_s=timeout_s,
        )
        cases.append((case, False))
    cases.append((Case(name="start without limit", limit=None, timeout_s=timeout_s, **short), True))
    warm = short | {"prompt_tokens": sizes.long_prompt, "warm": True}
    cases.append((Case(name="in memory", limit=None, timeout_s=timeout_s, **warm), True))
    return cases


def streaming_cases(sizes: Sizes, timeout_s: float) -> tuple[Case, Case]:
    """A whole answer of engines that stream experts: on an idle machine, and beside one busy process."""
    name = f"{sizes.answer} tokens in {size_name(sizes.streaming_limit)}"
    idle = Case(
        name=name,
        limit=sizes.streaming_limit,
        prompt_tokens=sizes.prompt,
        new_tokens=sizes.answer,
        settle_tokens=0,
        timeout_s=timeout_s,
    )
    return idle, replace(idle, name=f"{name}, beside a busy process", busy=True)


def roomy_case(sizes: Sizes, timeout_s: float) -> tuple[str, Case]:
    """The case that is repeated with 1 GiB more to live in, and its repetition."""
    limit = 8 * GIB if 8 * GIB in sizes.limits else sizes.limits[0]
    case = next(one for one, _ in contest_cases(sizes, timeout_s) if one.limit == limit)
    return case.name, Case(
        name=f"{case.name}, 1 GiB more to live in",
        limit=limit + GIB,
        budget=limit,
        prompt_tokens=case.prompt_tokens,
        new_tokens=case.new_tokens,
        settle_tokens=case.settle_tokens,
        timeout_s=timeout_s,
    )

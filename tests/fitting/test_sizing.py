"""How many bits a memory has room for: what is decided, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.errors import MemoryBudgetError, UsageError
from coterie.fitting.pruning import KeptShares
from coterie.fitting.sizing import LEAST_BITS, LEAST_BITS_FOR_DOMAINS, SPEED_KEPT, Sizer
from planner.conftest import fresh_process, tight  # noqa: F401 - fixtures
from planner.machines import a_machine

MIB = 2**20
CONTEXT = 64
EXPERTS = 96 * MIB
"""Of the model, in bfloat16."""


@pytest.fixture(scope="module")
def sized(tight: Path) -> Callable[..., Sizer]:  # noqa: F811
    """``sized(memory, context=64)``"""
    return lambda memory, context=CONTEXT, kept=None: Sizer(tight, memory, context=context, kept=kept)


@pytest.fixture(scope="module")
def least(sized) -> int:
    """The smallest memory in which a store of three bits runs. It leaves 16 MiB and two experts for these."""
    with pytest.raises(MemoryBudgetError, match=r"will not run in .*, because interpreter and libraries") as caught:
        sized(MIB).choose(bits=None, domains=(), measure=False)
    return caught.value.minimum


def test_the_memory_that_is_named_is_enough_and_less_is_not(sized, least: int) -> None:
    assert sized(least).choose(bits=None, domains=(), measure=False).bits == LEAST_BITS
    with pytest.raises(MemoryBudgetError):
        sized(least - 2 * MIB).choose(bits=None, domains=(), measure=False)


def test_all_experts_fit_where_they_can_with_enough_bits(sized, least: int) -> None:
    found = sized(least + 10 * MIB).choose(bits=None, domains=(), measure=False)
    assert (found.aim, found.bits, found.share) == ("memory", None, 1.0)
    assert 0 < found.room - found.expert_bytes <= found.room // 32 or found.room == found.expert_bytes
    assert found.about_bits == pytest.approx(16 * found.expert_bytes / EXPERTS, abs=0.02)
    assert "All experts stay in memory" in found.reason
    more = sized(least + 14 * MIB).choose(bits=None, domains=(), measure=False)
    assert more.store_nbytes - found.store_nbytes == more.expert_bytes - found.expert_bytes > 3 * MIB
    longer = sized(least + 10 * MIB, context=512).choose(bits=3.0, domains=(), measure=False)
    assert longer.room < found.room


def test_named_domains_may_have_fewer_bits(sized, least: int) -> None:
    every = sized(least).choose(bits=None, domains=(), measure=False)
    some = sized(least).choose(bits=None, domains=("code",), measure=False)
    assert (every.aim, some.aim) == ("speed", "memory")
    assert LEAST_BITS_FOR_DOMAINS <= some.about_bits < LEAST_BITS


def test_where_not_all_fit_the_planners_speed_decides(sized, least: int) -> None:
    sizer = sized(least)
    slow = sizer.choose(bits=None, domains=(), machine=a_machine(disk=1e6))
    fast = sizer.choose(bits=None, domains=(), machine=a_machine(disk=1e13))
    assert (slow.aim, slow.bits) == ("speed", LEAST_BITS)
    for found in (slow, fast):
        speeds = {one.bits: one.tokens_per_second for one in found.candidates}
        assert min(speeds) == LEAST_BITS
        assert found.bits == max(bits for bits, speed in speeds.items() if speed >= SPEED_KEPT * max(speeds.values()))
        assert f"With {found.bits:g} bits {found.share:.0%} of them fit" in found.reason
    unknown = sizer.choose(bits=None, domains=(), measure=False)
    assert unknown.bits == LEAST_BITS
    assert "no speed was measured" in unknown.reason


def test_how_many_experts_would_all_stay_is_said_and_so_it_is(sized, least: int) -> None:
    memory = least
    said = sized(memory).choose(bits=None, domains=(), measure=False)
    assert said.aim == "speed"
    share = int(said.reason.partition("--keep ")[2].partition("%")[0]) / 100
    assert 0.3 < share < 1

    def left(share: float) -> KeptShares:
        return KeptShares(every=share, components={"text": share})

    pruned = sized(memory, kept=left(share)).choose(bits=None, domains=(), measure=False)
    assert pruned.aim == "memory"
    assert LEAST_BITS <= pruned.about_bits < LEAST_BITS + 0.2
    assert "--keep" not in pruned.reason
    more = sized(memory, kept=left(share + 0.05)).choose(bits=None, domains=(), measure=False)
    assert more.aim == "speed"
    # With so few that what is left of them fits as it is, there is nothing to gain.
    with pytest.raises(UsageError, match=r"What is left of .* fits in .* as it is"):
        sized(least + 10 * MIB, kept=left(0.05)).choose(bits=None, domains=(), measure=False)
    # In no less memory does the model run: pruning is no answer to that.
    with pytest.raises(MemoryBudgetError, match="will not run") as caught:
        sized(MIB, kept=left(share)).choose(bits=None, domains=(), measure=False)
    assert caught.value.minimum == least


def test_bits_that_are_asked_for_are_taken(sized, least: int) -> None:
    found = sized(least).choose(bits=2.94, domains=(), measure=False)
    assert (found.aim, found.bits, found.expert_bytes) == ("bits", 2.94, None)
    assert 0 < found.share < 1
    with pytest.raises(UsageError, match="16 bits per weight: 16 are no fewer"):
        sized(least).choose(bits=16, domains=(), measure=False)


def test_what_fits_as_it_is_needs_no_fitting(sized) -> None:
    with pytest.raises(UsageError, match=r"fits in 4\.00 GiB as it is"):
        sized(4 << 30).choose(bits=None, domains=(), measure=False)


def test_the_full_model_has_to_run_too(sized, least: int) -> None:
    sized(least).check_running(4 << 30, 512, "--work-memory")
    with pytest.raises(MemoryBudgetError, match=r"Give at least --work-memory [0-9]+MiB") as caught:
        sized(least).check_running(100 * MIB, 512, "--work-memory")
    sized(least).check_running(caught.value.minimum, 512, "--work-memory")

"""A profile's domains: what they find in memory, how much of it each needs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coterie.checkpoint import Checkpoint
from coterie.errors import ProfileIdentityError, UsageError
from coterie.planner import Law, Plan, plan
from coterie.planner.profiled import Domain, Profiled
from coterie.profiles import BankShape, ProfileDatabase, Recording, RunFacts

from .machines import a_machine

LAW = Law(experts=16)


def domain(*counts: float, name: str = "code") -> Domain:
    return Domain.of_rates(name, 1000, np.array(counts))


def test_coverage_is_that_of_the_hottest() -> None:
    code = domain(10, 60, 30, 0)
    assert [code.coverage(share) for share in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([0, 0.6, 0.9, 1, 1])
    assert code.coverage(0.375) == pytest.approx(0.75)
    assert [code.share_for(share) for share in (0.6, 0.61, 0.9, 0.95)] == [0.25, 0.5, 0.5, 0.75]


def test_the_forecast_is_the_coverage_of_the_domain_that_misses_most() -> None:
    code, german = domain(*([15] * 4 + [1] * 12)), domain(*[1] * 16, name="german")
    known = Profiled(domains=(code, german), law=LAW, top_k=2)
    found = known.at(0.25, top_k=2)
    assert (found.grade, found.basis) == ("profile", "1000 tokens of german in the profile")
    assert found.rate.expected == pytest.approx(0.25)
    of_code = known.of(code, 0.25, top_k=2)
    assert of_code.rate.expected == pytest.approx(60 / 72)
    assert of_code.miss.low < 12 / 72 < of_code.miss.high
    assert known.at(1.0, top_k=2).rate.low == 1.0
    assert known.at(0.05, top_k=2).rate.low == 0.0
    assert known.of(code, 0.25, top_k=1).rate.expected > of_code.rate.expected


@pytest.fixture(scope="module")
def profile(tight: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`code` uses experts 0 to 3 alone, `prose` all 16 alike, of `notes` little was recorded."""
    source = Checkpoint.open(tight)
    banks = tuple(BankShape(bank=key, experts=16, top_k=4) for key in sorted(source.banks))
    run = RunFacts(identity=source.identity, model="m", model_class="M", tool_version="0", banks=banks)
    path = tmp_path_factory.mktemp("profile") / "p.db"
    spread = np.arange(1024 * 4).reshape(1024, 4) % 16
    with ProfileDatabase(path, create=True) as database, Recording(database, run, vocabulary=0) as recording:
        for name, ids in (("code", np.tile(np.arange(4), (1024, 1))), ("prose", spread), ("notes", spread[:8])):
            group = recording.group("text", name, "prompt")
            for shape in banks:
                values = np.ones(ids.shape, np.float32)
                recording.add(shape.bank, ids.astype(np.uint16), values, values, group)
    return path


def planned(tight: Path, least: int, profile: Path, **options: object) -> Plan:
    budgets = (least - 2**20, least + (40 << 20))
    return plan(tight, memory=budgets, profile=profile, machine=a_machine(), **options)


def test_a_domain_of_few_experts_needs_less_memory(tight: Path, least: int, profile: Path) -> None:
    found = planned(tight, least, profile)
    code, prose = found.domains  # of notes too little is known, and nobody named it
    assert (code.domain, code.tokens, prose.domain) == ("code", 1024, "prose")
    assert code.hit_rates[0] is None
    assert code.hit_rates[1].rate.expected > 0.9 > 0.7 > prose.hit_rates[1].rate.expected
    assert found.budgets[1].hit_rate == prose.hit_rates[1]
    assert found.budgets[1].hit_rate.rate.expected == pytest.approx(found.budgets[1].share, abs=0.02)
    assert least < code.memory_for_most < prose.memory_for_most <= found.all_experts
    there = plan(tight, memory=code.memory_for_most, profile=profile, domains=["code"], measure=False).budgets[0]
    assert there.hit_rate.rate.expected >= code.most
    assert f"--profile {profile}" in found.budgets[1].command


def test_one_domain_is_warmed(tight: Path, least: int, profile: Path) -> None:
    found = planned(tight, least, profile, domains=["code"])
    assert [one.domain for one in found.domains] == ["code"]
    assert found.budgets[1].hit_rate == found.domains[0].hit_rates[1]
    assert found.budgets[1].command.endswith(f"--profile {profile} --warm code")
    other = planned(tight, least, profile, domains=["code", "prose"])
    assert "--warm" not in other.budgets[1].command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": ["code"]}, "none was given"),
        ({"domains": ["cod"], "profile": ...}, "code"),
        ({"domains": ["notes"], "profile": ...}, "8 tokens of notes are in the profile, too few"),
        ({"probe": "text", "profile": ...}, "not from both"),
    ],
)
def test_what_cannot_be_answered(tight: Path, profile: Path, options: dict[str, object], message: str) -> None:
    given = {name: profile if value is ... else value for name, value in options.items()}
    with pytest.raises(UsageError, match=message):
        plan(tight, measure=False, **given)


def test_another_models_profile_is_refused(zoo_checkpoint, profile: Path) -> None:
    with pytest.raises(ProfileIdentityError):
        plan(zoo_checkpoint("qwen3_moe"), profile=profile, measure=False)

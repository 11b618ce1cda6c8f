"""Bits by a profile within a budget: what is chosen, stored, said and refused."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch

from coterie.calibration import Calibration
from coterie.checkpoint import Checkpoint
from coterie.errors import CoterieError, ProfileIdentityError, UsageError
from coterie.extraction import Allocation, extract, prune, quantize
from coterie.extraction.allocation.choosing import Candidate, Level, choose, smallest_nbytes
from coterie.extraction.allocation.levels import LevelMeasure
from coterie.inspection import inspect, verify
from coterie.origins import CheckpointOrigin
from coterie.spec.encodings import USUAL_SCHEMES
from coterie.store import Store, verify_store
from coterie.survey import gather
from zoo import ZOO, logits

from .profiles import recorded
from .stores import present, snapshot

NEEDED, MATTERS, RARE = 1, 3, 7
"""Experts of every layer: one that code needs, one that adds most to what chooses it, one that is chosen most."""


@pytest.fixture
def checkpoint(zoo_checkpoint) -> Path:
    return zoo_checkpoint("qwen3_moe", torch.bfloat16)


@pytest.fixture
def profile(checkpoint: Path, tmp_path: Path) -> Path:
    every = [(expert, 1.0, 40) for expert in range(8)]
    groups = {
        ("text", "code"): [(NEEDED, 2.0, 500), (2, 1.0, 200)],
        ("text", "prose"): [*every, (MATTERS, 20.0, 400), (RARE, 0.01, 4000)],
    }
    return recorded(tmp_path / "p.db", Checkpoint.open(checkpoint), groups)


def test_no_choice_in_a_little_less_is_better() -> None:
    draw = random.Random(1)
    for _ in range(10):
        candidates = []
        for _ in range(3):
            weight, sizes = draw.uniform(0.1, 5), sorted(draw.sample(range(1, 40), 3))
            matrix = [Level(scheme=str(n), nbytes=n, cost=weight / 4**place) for place, n in enumerate(sizes)]
            other = [Level(scheme=str(n), nbytes=2 * n, cost=draw.random() * weight / 3**n) for n in (1, 2, 3)]
            absence = weight * 2 if draw.random() < 0.5 else None
            candidates.append(Candidate(matrices=(tuple(matrix), tuple(other)), absence=absence))
        least = smallest_nbytes(candidates)
        ways = [[*itertools.product(*one.matrices), *([None] if one.absence is not None else [])] for one in candidates]
        every = [(cost(candidates, way), taken(way)) for way in itertools.product(*ways)]
        # What does not fit is one step at most, and none is larger than an expert.
        largest = max(sum(max(level.nbytes for level in levels) for levels in one.matrices) for one in candidates)
        for budget in range(least, least + 120, 13):
            found = choose(candidates, budget)
            assert taken(found) <= budget
            assert cost(candidates, found) <= min(c for c, n in every if n <= max(least, budget - largest)) + 1e-12


def cost(candidates, found) -> float:
    return sum(
        one.absence if levels is None else sum(level.cost for level in levels)
        for one, levels in zip(candidates, found, strict=True)
    )


def taken(found) -> int:
    return sum(level.nbytes for levels in found if levels is not None for level in levels)


def test_levels_are_those_that_are_smaller_with_the_errors_of_the_schemes(checkpoint: Path, tmp_path: Path) -> None:
    origin = CheckpointOrigin.open(checkpoint)
    key = next(iter(origin.keys()))
    measure = LevelMeasure(origin)
    ((_, found),) = measure.measure([key])
    measure.close()
    assert [level.scheme for level in found["down_proj"]] == [*USUAL_SCHEMES, "native"]
    errors = [level.error for level in found["down_proj"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0
    sizes = [level.nbytes for level in found["gate_up_proj"]]
    assert sizes == sorted(sizes)
    weights = origin.model.banks[key.bank_key].bank.parameters["down_proj"]
    value = torch.frombuffer(bytearray(record(origin, key)), dtype=torch.bfloat16)[-weights[0] * weights[1] :]
    assert found["down_proj"][-1].nbytes == value.nbytes


def record(origin: CheckpointOrigin, key) -> bytes:
    buffer = bytearray(origin.layout(key).nbytes)
    origin.read_into(key, memoryview(buffer))
    return bytes(buffer[: origin.layout(key).payload_nbytes])


def test_what_adds_most_gets_most_bits_and_sums_do_not_decide(checkpoint: Path, profile: Path, tmp_path: Path) -> None:
    allocation = Allocation(bits=4.5, profile=profile)
    report = extract(checkpoint, tmp_path / "got", allocation=allocation)
    found = report.allocation
    assert found is not None
    bits_found = found.facts.bits / 1000
    assert bits_found <= 4.5
    assert (found.facts.criterion, found.facts.domains, found.facts.left_out) == ("reap", (), 0)
    store = Store.open(tmp_path / "got")
    for bank in store.banks:
        bits = [sum(map(bits_of, store.scheme(bank.expert(e)).split("+"))) for e in range(8)]
        assert bits[MATTERS] == max(bits)
        assert bits[RARE] == min(bits)
        assert bits[RARE] < bits[0]
    (component,) = found.components
    assert component.allocation.nbytes == found.nbytes == store.manifest.expert_nbytes
    # Of schemes for all, the next smaller one is farther off by the profile.
    assert component.uniform[0].bits <= bits_found < component.uniform[1].bits
    assert component.uniform[0].error > component.allocation.error
    assert sum(one.levels.get("int2", 0) for one in found.matrices) > 0
    assert all(sum(one.levels.values()) == 8 for one in found.matrices)


def bits_of(scheme: str) -> int:
    return 16 if scheme == "native" else int(scheme.removeprefix("int"))


def test_the_store_says_why_and_is_whole(checkpoint: Path, profile: Path, tmp_path: Path, open_model) -> None:
    extract(checkpoint, tmp_path / "native")
    allocation = Allocation(bits=3.9, profile=profile)
    quantize(tmp_path / "native", tmp_path / "got", allocation=allocation)
    extract(checkpoint, tmp_path / "want", allocation=allocation, dense_scheme="native")
    assert snapshot(tmp_path / "got") == snapshot(tmp_path / "want")
    facts = Store.open(tmp_path / "got").manifest.allocation
    assert facts is not None
    assert (facts.criterion, facts.domains, facts.left_out) == ("reap", (), 0)
    assert 3000 < facts.bits <= 3900
    assert dict(facts.tokens_of) == {"text": ("text",)}
    assert Store.open(tmp_path / "got").manifest.version == 4
    assert inspect(tmp_path / "got").allocation == facts
    assert inspect(tmp_path / "native").allocation is None
    assert verify_store(tmp_path / "got").ok
    assert verify(tmp_path / "got", against=checkpoint).ok
    assert extract(checkpoint, tmp_path / "got", allocation=allocation, dense_scheme="native").status == (
        "already complete"
    )
    quantize(tmp_path / "got", tmp_path / "dense", dense_scheme="int8")
    assert Store.open(tmp_path / "dense").manifest.allocation == facts
    prune(tmp_path / "got", tmp_path / "pruned", keep=4, by="random")
    assert Store.open(tmp_path / "pruned").manifest.allocation is None
    assert torch.isfinite(logits(open_model(tmp_path / "got", expert_memory="30%"), ZOO["qwen3_moe"].inputs())).all()


def test_named_domains_take_the_bits_and_others_lose_experts(checkpoint: Path, profile: Path, tmp_path: Path) -> None:
    allocation = Allocation(bits=2.0, profile=profile, domains=("code",))
    report = extract(checkpoint, tmp_path / "got", allocation=allocation)
    assert report.allocation is not None
    assert report.allocation.facts.criterion == "energy"
    assert report.allocation.facts.left_out > 0
    assert report.experts_present == 16 - report.allocation.facts.left_out
    assert not report.complete
    for experts in present(tmp_path / "got").values():
        # As many as a token uses, and those that code uses.
        assert {NEEDED, 2} <= experts
        assert MATTERS not in experts
    facts = Store.open(tmp_path / "got").manifest.allocation
    assert facts is not None
    assert (facts.domains, facts.left_out) == (("code",), report.allocation.facts.left_out)
    assert dict(facts.tokens_of) == {"text": ("text of code",)}
    both = Allocation(bits=4.0, profile=profile, domains=("prose", "code", "code"))
    assert extract(checkpoint, tmp_path / "both", allocation=both).status == "written"
    facts = Store.open(tmp_path / "both").manifest.allocation
    assert facts is not None
    assert facts.domains == ("code", "prose")


def test_bytes_for_all_experts_hold(checkpoint: Path, profile: Path, tmp_path: Path) -> None:
    extract(checkpoint, tmp_path / "int3", scheme="int3")
    most = Store.open(tmp_path / "int3").manifest.expert_nbytes
    extract(checkpoint, tmp_path / "got", allocation=Allocation(expert_bytes=most, profile=profile))
    got = Store.open(tmp_path / "got").manifest.expert_nbytes
    assert 0.8 * most < got <= most
    with pytest.raises(UsageError, match="at least") as refused:
        extract(checkpoint, tmp_path / "no", allocation=Allocation(expert_bytes="60KiB", profile=profile))
    least = refused.value.facts["least"]
    extract(checkpoint, tmp_path / "least", allocation=Allocation(expert_bytes=least, profile=profile))
    with pytest.raises(UsageError, match="at least"):
        extract(checkpoint, tmp_path / "no", allocation=Allocation(expert_bytes=least - 1, profile=profile))


def test_of_a_lossy_store_nothing_gets_more_bits(checkpoint: Path, profile: Path, tmp_path: Path) -> None:
    extract(checkpoint, tmp_path / "int4", scheme="int4")
    with pytest.warns(UserWarning, match="lossy already"):
        quantize(tmp_path / "int4", tmp_path / "got", allocation=Allocation(bits=3.9, profile=profile))
    store = Store.open(tmp_path / "got")
    assert {one for key in store.keys() for one in store.scheme(key).split("+")} <= {"int2", "int3", "int4"}
    with pytest.raises(UsageError, match="fit as they are"):
        quantize(tmp_path / "int4", tmp_path / "no", allocation=Allocation(bits=8, profile=profile))


def test_a_dry_run_writes_nothing(checkpoint: Path, profile: Path, tmp_path: Path) -> None:
    allocation = Allocation(bits=4, profile=profile)
    report = extract(checkpoint, tmp_path / "got", allocation=allocation, dry_run=True)
    assert report.status == "planned"
    assert report.allocation is not None
    assert report.allocation.components[0].asked_ratio > 0
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of the two"),
        ({"bits": 4, "expert_bytes": "1GiB"}, "one of the two"),
        ({"bits": 0}, "not a number of bits"),
        ({"bits": float("nan")}, "not a number of bits"),
        ({"expert_bytes": "much"}, "not a size"),
        ({"bits": 1}, "at least"),
        ({"bits": 40}, "fit as they are"),
        ({"bits": 4, "domains": ("cod",)}, "code"),
        ({"bits": 4, "modalities": ("audio",)}, "modality of this profile 'audio'"),
        ({"bits": 4, "profile": None}, "coterie profile record"),
    ],
)
def test_what_cannot_be_asked_for(checkpoint: Path, profile: Path, tmp_path: Path, options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        extract(checkpoint, tmp_path / "store", allocation=Allocation(**({"profile": profile} | options)))
    assert not (tmp_path / "store").exists()


def test_the_least_bits_that_are_named_are_enough(checkpoint: Path, profile: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        extract(checkpoint, tmp_path / "no", allocation=Allocation(bits=1, profile=profile))
    least = refused.value.facts["least"]
    report = extract(checkpoint, tmp_path / "store", allocation=Allocation(bits=least, profile=profile))
    assert {record.scheme for bank in Store.open(report.store).banks.values() for record in bank.records.values()} == {
        "int2"
    }


def test_schemes_and_an_allocation_do_not_go_together(checkpoint: Path, profile: Path, tmp_path: Path) -> None:
    allocation = Allocation(bits=4, profile=profile)
    for make in (extract, quantize):
        with pytest.raises(UsageError, match="given schemes, too"):
            make(checkpoint, tmp_path / "store", allocation=allocation, scheme="int4")


def test_another_models_profile_is_refused(zoo_checkpoint, profile: Path, tmp_path: Path) -> None:
    other = zoo_checkpoint("mixtral", torch.bfloat16)
    with pytest.raises(ProfileIdentityError):
        extract(other, tmp_path / "store", allocation=Allocation(bits=4, profile=profile))


def test_every_modality_of_the_model_is_needed(zoo_checkpoint, tmp_path: Path) -> None:
    directory = zoo_checkpoint("qwen3_omni", torch.bfloat16)
    text = {("text", "prose"): [(e, 1.0 + e, 80) for e in range(4)]}
    some = recorded(tmp_path / "text.db", Checkpoint.open(directory), text)
    with pytest.raises(UsageError, match="Nothing was recorded of talker"):
        extract(directory, tmp_path / "s", allocation=Allocation(bits=4, profile=some, modalities=("text",)))
    thinker = recorded(tmp_path / "thinker.db", Checkpoint.open(directory, component="thinker"), text)
    with pytest.raises(UsageError, match="audio and image"):
        extract(directory, tmp_path / "s", component="thinker", allocation=Allocation(bits=4, profile=thinker))
    only = Allocation(bits=4, profile=thinker, modalities=("text",))
    report = extract(directory, tmp_path / "s", component="thinker", allocation=only, dry_run=True)
    assert report.allocation is not None


def test_few_observations_are_warned_of(checkpoint: Path, tmp_path: Path) -> None:
    few = {("text", "code"): [(expert, 1.0 + expert, 10) for expert in range(8)]}
    profile = recorded(tmp_path / "few.db", Checkpoint.open(checkpoint), few)
    with pytest.warns(UserWarning, match="mostly chance"):
        extract(checkpoint, tmp_path / "s", allocation=Allocation(bits=4, profile=profile), dry_run=True)


def test_a_finished_store_gets_no_bits_anew(checkpoint: Path, profile: Path, tmp_path: Path, monkeypatch) -> None:
    some = tmp_path / "some"
    extract(checkpoint, some, experts="0-3")
    before = snapshot(some)
    monkeypatch.setattr("coterie.extraction.extraction.allocate", None)  # it takes as long as reading all experts
    with pytest.raises(UsageError, match="bits were not allocated like that"):
        extract(checkpoint, some, experts="4-7", allocation=Allocation(profile=profile, bits=4.0))
    assert snapshot(some) == before


def test_other_bits_for_the_same_store_are_refused(checkpoint: Path, profile: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    wanted = Allocation(profile=profile, bits=4.0)
    extract(checkpoint, store, allocation=wanted)
    assert extract(checkpoint, store, allocation=wanted).status == "already complete"
    with pytest.raises(UsageError, match="bits were not allocated like that"):
        extract(checkpoint, store, allocation=Allocation(profile=profile, bits=5.0))


def test_what_grows_is_no_longer_what_was_allocated(checkpoint: Path, profile: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    extract(checkpoint, store, allocation=Allocation(profile=profile, bits=2.5, domains=("code",)))
    assert inspect(store).allocation.left_out > 0
    lacking = {layer: sorted(set(range(8)) - set(experts)) for layer, experts in present(store).items()}
    extract(checkpoint, store, experts={layer: ids for layer, ids in lacking.items() if ids}, scheme="int4")
    found = inspect(store)
    assert found.complete
    assert found.allocation is None
    assert verify_store(store).ok


def test_what_cannot_be_calibrated_is_told_before_weights_are_measured(
    checkpoint: Path, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(LevelMeasure, "measure", measured)
    texts = Calibration(material=gather("text", "code", checkpoint / "config.json"), tokens=8)
    extract(checkpoint, tmp_path / "native")
    for model in (checkpoint, tmp_path / "native"):
        with pytest.raises(CoterieError, match="tokenizer"):
            quantize(model, tmp_path / "store", allocation=Allocation(profile=profile, bits=4.0), calibration=texts)

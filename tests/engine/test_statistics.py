"""What is counted is what happened: compared with the events, with stock routers, and with the disk."""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from coterie.engine.statistics import STATS_SCHEMA_VERSION
from coterie.errors import ChecksumError
from coterie.spec import BankKey, Event, ExpertsSelected, ExpertsServed, StepStarted
from zoo import ZOO, logits

BF16 = torch.bfloat16
NAMES = ["qwen3_moe", "gpt_oss", "qwen3_omni_thinker"]


class Witness:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def generate(model, name: str, tokens: int = 5, batch: int = 1) -> torch.Tensor:
    return model.generate(**ZOO[name].inputs(seed=1, batch=batch), max_new_tokens=tokens, do_sample=False)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name, zoo_store, open_model):
    return open_model(zoo_store(name, BF16), expert_memory="25%")


# --- counts -----------------------------------------------------------------------------------------------------------


def test_counts_equal_a_brute_force_count_of_the_events(model, name):
    witness = Witness()
    model.coterie.add_observer(witness)
    generate(model, name, batch=2)
    stats = model.coterie.stats()
    phases = {event.step: event.phase for event in witness.of(StepStarted)}
    requested: Counter[BankKey] = Counter()
    decoding: Counter[BankKey] = Counter()
    for event in witness.of(ExpertsSelected):
        distinct = len(set(event.expert_ids.flatten().tolist()))
        requested[event.bank] += distinct
        decoding[event.bank] += distinct if phases[event.step] == "decode" else 0
    assert {bank: layer.requested for bank, layer in stats.layers.items()} == requested
    assert {bank: layer.decode_requested for bank, layer in stats.layers.items()} == decoding
    assert stats.total.requested == sum(requested.values())
    assert 0 < stats.total.decode_requested < stats.total.requested
    served = witness.of(ExpertsServed)
    for figure in ("requested", "hits", "misses", "bytes_read", "evictions", "absent"):
        assert getattr(stats.total, figure) == sum(getattr(event, figure) for event in served), figure
    assert stats.total.wait_s == pytest.approx(sum(event.wait_s for event in served))


def test_hits_and_misses_make_up_the_requests(model, name):
    generate(model, name, batch=2)
    stats = model.coterie.stats()
    for part in (stats.total, *stats.components.values(), *stats.layers.values()):
        assert part.hits + part.misses == part.requested > 0
        assert part.hit_rate == part.hits / part.requested
        assert part.misses > 0
    assert stats.total.decode_hit_rate <= 1


def test_a_model_that_has_everything_in_memory_hits_always(name, zoo_store, open_model):
    model = open_model(zoo_store(name, BF16), expert_memory="100%")
    generate(model, name)
    before = model.coterie.stats().total
    generate(model, name)
    after = model.coterie.stats().total
    assert after.misses == before.misses
    assert after.bytes_read == before.bytes_read
    assert after.hits - before.hits == before.requested
    assert after.evictions == 0


def test_bytes_read_are_misses_times_the_record(model, name):
    generate(model, name)
    stats = model.coterie.stats()
    source = model.coterie.source.experts
    (record,) = {source.layout(key).nbytes for key in source.keys()}
    assert stats.total.bytes_read == stats.total.misses * record
    assert stats.resident_bytes == stats.resident_experts * record
    cache = model.coterie.cache.stats()
    in_vain = cache.announced_issued - cache.announced_used
    assert stats.resident_experts == stats.total.misses + in_vain - cache.evictions
    assert stats.total_expert_bytes == len(source.keys()) * record


def test_tokens_are_counted_by_phase_and_component(zoo_store, open_model):
    model = open_model(zoo_store("qwen3_omni", BF16), expert_memory="25%")
    inputs = ZOO["qwen3_omni"].inputs(seed=7, length=32)
    limits = {"thinker_max_new_tokens": 5, "talker_max_new_tokens": 6, "talker_min_new_tokens": 6}
    model.generate(**inputs, **limits, thinker_do_sample=False, talker_do_sample=False)
    stats = model.coterie.stats()
    assert stats.prefill_tokens["thinker"] == 32
    assert stats.decode_tokens["thinker"] == 4
    assert stats.prefill_tokens["talker"] > 0
    assert stats.decode_tokens["talker"] == 5
    assert set(stats.components) == {"thinker", "talker"}
    assert sum(part.requested for part in stats.components.values()) == stats.total.requested


def test_steps_say_what_was_asked(model, name):
    witness = Witness()
    model.coterie.add_observer(witness)
    output = generate(model, name, tokens=3, batch=2)
    steps = witness.of(StepStarted)
    assert [(step.phase, step.batch, step.tokens) for step in steps] == [("prefill", 2, 24)] + [("decode", 2, 1)] * 2
    assert [step.step for step in steps] == [0, 1, 2]
    if name != "qwen3_omni_thinker":  # which is called with ids, too, but only by some releases
        assert steps[0].input_ids.tolist() == output[:, :24].tolist()
    banks = {event.bank for event in witness.of(ExpertsSelected)}
    assert banks == set(model.coterie.banks)
    order = [(type(event).__name__, getattr(event, "bank", None)) for event in witness.events]
    for index, (kind, bank) in enumerate(order):
        if kind == "ExpertsSelected":
            assert order[index + 1] == ("ExpertsServed", bank)


# --- per token --------------------------------------------------------------------------------------------------------


def test_tokens_equal_the_events(model, name):
    assert model.coterie.stats().tokens is None
    witness = Witness()
    model.coterie.add_observer(witness)
    model.coterie.record_tokens()
    generate(model, name, tokens=3)
    tokens = model.coterie.stats().tokens
    flat = [
        (event.step, position, event.bank, ids, weights)
        for event in witness.of(ExpertsSelected)
        for position, (ids, weights) in enumerate(zip(event.expert_ids.tolist(), event.weights.tolist(), strict=True))
    ]
    assert len(tokens) == len(flat) == (24 + 2) * len(model.coterie.banks)
    for token, (step, position, bank, ids, weights) in zip(tokens, flat, strict=True):
        assert (token.step, token.position, token.component, token.layer, token.bank) == (step, position, *bank)
        assert token.experts == tuple(ids)
        assert token.weights == tuple(weights)
        best = max(range(len(ids)), key=weights.__getitem__)
        assert token.dominant == ids[best]
        assert token.dominant_share == pytest.approx(weights[best] / sum(weights))


def test_routing_is_that_of_stock(zoo_store, zoo_stock, open_model):
    model = open_model(zoo_store("qwen3_moe", BF16), expert_memory="25%")
    model.coterie.record_tokens()
    inputs = ZOO["qwen3_moe"].inputs(seed=1)
    logits(model, inputs)
    with torch.no_grad():
        router_logits = zoo_stock("qwen3_moe", BF16)(**inputs, output_router_logits=True).router_logits
    for layer, scores in enumerate(router_logits):
        chosen = [token for token in model.coterie.stats().tokens if token.layer == layer]
        weights = scores.float().softmax(-1).topk(2)
        expected = (weights.values / weights.values.sum(-1, keepdim=True)).to(BF16).float()
        assert torch.equal(torch.tensor([token.weights for token in chosen]), expected)


# --- files ------------------------------------------------------------------------------------------------------------


def test_written_statistics_are_json(model, name, tmp_path):
    model.coterie.record_tokens()
    generate(model, name, tokens=3)
    model.coterie.write_stats(tmp_path / "stats.json")
    written = json.loads((tmp_path / "stats.json").read_text())
    stats = model.coterie.stats()
    assert written == json.loads(json.dumps(stats.to_dict()))
    assert written["schema_version"] == STATS_SCHEMA_VERSION == 1
    assert written["total"]["requested"] == stats.total.requested
    assert [layer["layer"] for layer in written["layers"]] == [bank.layer for bank in model.coterie.banks]
    assert sum(layer["misses"] for layer in written["layers"]) == written["total"]["misses"]
    assert len(written["tokens"]) == len(stats.tokens)
    assert written["identity"] == model.coterie.source.identity


def test_a_fresh_model_has_counted_nothing(model):
    stats = model.coterie.stats()
    assert (stats.total.requested, stats.total.hit_rate, stats.resident_experts, stats.resident_bytes) == (0, 0.0, 0, 0)
    json.dumps(stats.to_dict())


# --- observers --------------------------------------------------------------------------------------------------------


class Failing:
    """Raises at the first event of a kind."""

    def __init__(self, kind: type[Event], error: BaseException) -> None:
        self.kind, self.error = kind, error

    def on_event(self, event: Event) -> None:
        if isinstance(event, self.kind):
            raise self.error


@pytest.mark.parametrize("kind", [StepStarted, ExpertsSelected, ExpertsServed])
@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()], ids=repr)
def test_an_observers_exception_ends_the_forward_pass_and_harms_nothing(kind, error, model, name, zoo_stock):
    observer = Failing(kind, error)
    model.coterie.add_observer(observer)
    inputs = ZOO[name].inputs(seed=1)
    with pytest.raises(type(error)):
        logits(model, inputs)
    model.coterie.remove_observer(observer)
    model.coterie.remove_observer(observer)
    assert torch.equal(logits(model, inputs), logits(zoo_stock(name, BF16), inputs))


def test_observing_changes_no_bit(model, name, zoo_stock):
    model.coterie.add_observer(Witness())
    inputs = ZOO[name].inputs(seed=1)
    assert torch.equal(logits(model, inputs), logits(zoo_stock(name, BF16), inputs))


# --- reads ------------------------------------------------------------------------------------------------------------


def test_opening_a_store_opens_no_file_of_experts(zoo_store, open_model, monkeypatch):
    store, opened = zoo_store("qwen3_moe", BF16), []

    def watched(function):
        def open_(file, *arguments, **options):
            opened.append(str(file))
            return function(file, *arguments, **options)

        return open_

    for module, name in ((os, "open"), (io, "open"), (builtins, "open")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    experts = str(store / "experts")
    model = open_model(store, expert_memory="25%")
    assert str(store / "config.json") in opened
    assert not any(path.startswith(experts) for path in opened)
    model(input_ids=torch.ones(1, 3, dtype=torch.int64))
    assert any(path.startswith(experts) for path in opened)


@pytest.fixture
def flipped(zoo_store, tmp_path) -> Path:
    """A copy of a store with one bit of one expert's gate turned over, of a kind that no size can tell."""
    directory = Path(shutil.copytree(zoo_store("qwen3_moe", BF16), tmp_path / "flipped"))
    segment = sorted((directory / "experts").rglob("*layer-001*.safetensors"))[0]
    content = bytearray(segment.read_bytes())
    content[-6000] ^= 0x40
    segment.write_bytes(content)
    return directory


def test_a_flipped_bit_is_found_at_read_time(flipped, open_model):
    model = open_model(flipped, verify_reads=True, expert_memory="25%")
    with pytest.raises(ChecksumError) as caught:
        logits(model, ZOO["qwen3_moe"].inputs(batch=2))
    assert (caught.value.key.layer, caught.value.key.component) == (1, "text")
    assert caught.value.expected != caught.value.got


def test_without_verification_it_is_not(flipped, open_model, zoo_stock):
    inputs = ZOO["qwen3_moe"].inputs(batch=2)
    result = logits(open_model(flipped), inputs)
    assert not torch.equal(result, logits(zoo_stock("qwen3_moe", BF16), inputs)), "the bit that was flipped is used"


def test_verified_reads_of_a_sound_store_are_exact(zoo_store, zoo_stock, open_model):
    model = open_model(zoo_store("qwen3_moe", BF16), verify_reads=True, expert_memory="25%")
    inputs = ZOO["qwen3_moe"].inputs(batch=2)
    assert torch.equal(logits(model, inputs), logits(zoo_stock("qwen3_moe", BF16), inputs))

"""Traces hold what stock transformers' routers decide, in both formats."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from coterie.engine import TraceRecorder
from coterie.errors import UsageError
from coterie.spec import BankKey, ExpertsSelected, StepStarted
from harness.kept_cache import kept_cache
from zoo import ZOO, logits

BF16 = torch.bfloat16
NEW = 4


@pytest.fixture
def model(zoo_store, open_model):
    return open_model(zoo_store("qwen3_moe", BF16), expert_memory="25%")


@pytest.fixture(scope="module")
def expected(zoo_stock):
    """Ids and weights [tokens, layers, k] that stock's routers give for a prompt and what follows it."""
    stock = zoo_stock("qwen3_moe", BF16)
    ids = stock.generate(**ZOO["qwen3_moe"].inputs(seed=1), max_new_tokens=NEW, do_sample=False)
    rows: list[list[tuple[list[int], list[float]]]] = []
    kept = {}
    for piece in (ids[:, :24], *ids[:, 24:-1].split(1, dim=1)):
        with torch.no_grad():
            out = stock(input_ids=piece, **kept, use_cache=True, output_router_logits=True)
        kept = kept_cache(out)
        layers = []
        for scores in out.router_logits:
            best = scores.float().softmax(-1).topk(2)
            weights = (best.values / best.values.sum(-1, keepdim=True)).to(BF16).float()
            layers.append(list(zip(best.indices.tolist(), weights.tolist(), strict=True)))
        rows.extend(list(token) for token in zip(*layers, strict=True))
    return (
        np.array([[ids for ids, _ in row] for row in rows], dtype=np.uint16),
        np.array([[weights for _, weights in row] for row in rows], dtype=np.float32),
    )


def generate(model) -> None:
    model.generate(**ZOO["qwen3_moe"].inputs(seed=1), max_new_tokens=NEW, do_sample=False)


def test_npz_equals_the_routing_of_stock(model, expected, tmp_path):
    with model.coterie.record_trace(tmp_path / "trace.npz"):
        generate(model)
    trace = np.load(tmp_path / "trace.npz", allow_pickle=False)
    assert trace["components"].tolist() == ["text"]
    assert trace["text.expert_ids"].dtype == np.uint16
    assert trace["text.weights"].dtype == np.float32
    np.testing.assert_array_equal(trace["text.expert_ids"], expected[0])
    np.testing.assert_array_equal(trace["text.weights"], expected[1])
    assert trace["text.phase"].tolist() == [0] * 24 + [1] * (NEW - 1)
    assert trace["text.step"].tolist() == [0] * 24 + list(range(1, NEW))
    assert trace["text.layers"].tolist() == [0, 1]
    assert trace["text.banks"].tolist() == ["mlp", "mlp"]
    assert trace["text.num_experts"].tolist() == [8, 8]
    assert trace["schema_version"] == 1
    assert trace["identity"] == model.coterie.source.identity


def test_jsonl_says_the_same(model, expected, tmp_path):
    with model.coterie.record_trace(tmp_path / "trace.jsonl"):
        generate(model)
    head, *lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert head["schema_version"] == 1
    assert head["identity"] == model.coterie.source.identity
    assert len(lines) == 2 * (24 + NEW - 1)
    for line in lines:
        assert line["expert_ids"] == expected[0][line["token"], line["layer"]].tolist()
        assert line["weights"] == expected[1][line["token"], line["layer"]].tolist()
        assert line["phase"] == ("prefill" if line["token"] < 24 else "decode")
        assert (line["component"], line["bank"]) == ("text", "mlp")


def test_a_trace_of_several_components(zoo_store, open_model, tmp_path):
    model = open_model(zoo_store("qwen3_omni", BF16), expert_memory="25%")
    limits = {"thinker_max_new_tokens": 3, "talker_max_new_tokens": 4, "talker_min_new_tokens": 4}
    with model.coterie.record_trace(tmp_path / "trace.npz"):
        model.generate(**ZOO["qwen3_omni"].inputs(length=32), **limits)
    trace = np.load(tmp_path / "trace.npz")
    assert trace["components"].tolist() == ["talker", "thinker"]
    stats = model.coterie.stats()
    for component in ("talker", "thinker"):
        tokens = stats.prefill_tokens[component] + stats.decode_tokens[component]
        assert trace[f"{component}.expert_ids"].shape == (tokens, 2, 2)
        assert (trace[f"{component}.expert_ids"] < 8).all()


def test_only_what_runs_inside_is_recorded(model, tmp_path):
    logits(model, ZOO["qwen3_moe"].inputs(seed=3))
    with model.coterie.record_trace(tmp_path / "trace.npz"):
        logits(model, ZOO["qwen3_moe"].inputs(seed=1, length=7))
    logits(model, ZOO["qwen3_moe"].inputs(seed=3))
    assert np.load(tmp_path / "trace.npz")["text.phase"].shape == (7,)


def test_what_ran_before_an_error_is_kept(model, tmp_path):
    def run_and_fail() -> None:
        with model.coterie.record_trace(tmp_path / "trace.npz"):
            logits(model, ZOO["qwen3_moe"].inputs(seed=1, length=7))
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        run_and_fail()
    assert np.load(tmp_path / "trace.npz")["text.phase"].shape == (7,)


def test_an_error_before_anything_ran_is_not_hidden(model, tmp_path):
    with pytest.raises(RuntimeError, match="mine"), model.coterie.record_trace(tmp_path / "trace.npz"):
        raise RuntimeError("mine")


def test_nothing_recorded_is_an_error(model, tmp_path):
    with pytest.raises(UsageError, match="Nothing was recorded"), model.coterie.record_trace(tmp_path / "trace.npz"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_another_ending_is_an_error(model, tmp_path):
    recorder = TraceRecorder(model="m", identity="i", num_experts={})
    with pytest.raises(UsageError, match=r"\.npz or \.jsonl"):
        recorder.save(tmp_path / "trace.csv")


def test_banks_of_different_k_and_absent_layers_are_padded(tmp_path):
    banks = [BankKey("text", layer, "mlp") for layer in (0, 1)]
    recorder = TraceRecorder(model="m", identity="i", num_experts=dict.fromkeys(banks, 300))
    for step, (phase, used) in enumerate([("prefill", banks), ("decode", banks[:1])]):
        tokens = 3 if phase == "prefill" else 1
        recorder.on_event(StepStarted(step=step, component="text", phase=phase, batch=1, tokens=tokens, input_ids=None))
        for bank in used:
            k = bank.layer + 1
            ids = np.full((tokens, k), 299, dtype=np.uint16)
            weights = np.ones((tokens, k), dtype=np.float32)
            recorder.on_event(ExpertsSelected(step=step, bank=bank, expert_ids=ids, weights=weights))
    recorder.save(tmp_path / "trace.npz")
    trace = np.load(tmp_path / "trace.npz")
    assert trace["text.expert_ids"].tolist() == [
        *[[[299, 65535], [299, 299]]] * 3,
        [[299, 65535], [65535, 65535]],
    ]
    assert trace["text.weights"].sum(axis=(1, 2)).tolist() == [3, 3, 3, 1]

"""Fewer experts for some tokens: as many as was said, the heaviest, and nothing of it once the context is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.errors import UsageError
from coterie.extraction import extract
from coterie.integration.quantised import TokenExperts
from coterie.native import library
from coterie.profiles.salience import SalienceRank
from coterie.spec import AdaptiveExperts
from zoo import ZOO, logits
from zoo.undecorated import UNDECORATED

BF16 = torch.bfloat16
NEW = 30
LAYERS = 2


class Witness:
    """Keeps what was asked of each bank, and what the routers chose."""

    def __init__(self) -> None:
        self.requested: dict[int, list[int]] = {}
        self.phases: dict[int, str] = {}

    def on_event(self, event: Any) -> None:
        if type(event).__name__ == "ExpertsServed":
            self.requested.setdefault(event.step, []).append(event.requested)
        elif type(event).__name__ == "StepStarted":
            self.phases[event.step] = event.phase


@pytest.fixture
def model(zoo_store, open_model):
    return open_model(zoo_store("qwen3_moe", BF16), expert_memory="40%")


def generate(model: Any, **options: Any) -> torch.Tensor:
    return model.generate(**ZOO["qwen3_moe"].inputs(seed=1), max_new_tokens=NEW, do_sample=False, **options)


def test_all_experts_are_the_model_as_it_is(model):
    inputs = ZOO["qwen3_moe"].inputs(seed=1)
    expected = logits(model, inputs)
    for how in (AdaptiveExperts(k_max=2), AdaptiveExperts(), "crisis"):  # three quarters of two, rounded up
        with model.coterie.adapt_experts(how) as adaptation:
            assert torch.equal(logits(model, inputs), expected)
        assert adaptation.kept == adaptation.chosen == 2 * LAYERS * inputs["input_ids"].numel()


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_one_expert_is_that_of_a_router_that_chooses_one(dtype, zoo_store, open_model):
    # Weights that sum to 1 either way.
    model = open_model(zoo_store("qwen3_moe", dtype))
    other = open_model(zoo_store("qwen3_moe", dtype), experts_per_token=1)
    inputs = ZOO["qwen3_moe"].inputs(seed=1)
    with model.coterie.adapt_experts(AdaptiveExperts(k_max=1)) as adaptation:
        found = logits(model, inputs)
    assert adaptation.kept * 2 == adaptation.chosen
    torch.testing.assert_close(found, logits(other, inputs), rtol=1e-2, atol=1e-2 if dtype is BF16 else 1e-5)
    assert not torch.equal(found, logits(model, inputs))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_gate_is_each_tokens_own(share, model):
    weights: list[torch.Tensor] = []

    class Gates:
        def on_event(self, event: Any) -> None:
            if type(event).__name__ == "ExpertsSelected":
                weights.append(torch.tensor(event.weights))

    model.coterie.add_observer(Gates())
    with model.coterie.adapt_experts(f"gate:{share}") as adaptation:
        logits(model, ZOO["qwen3_moe"].inputs(seed=1))
    all_weights = torch.cat(weights)
    kept = int((all_weights >= share * all_weights.amax(1, keepdim=True)).sum())
    assert (adaptation.kept, adaptation.chosen) == (kept, all_weights.numel())
    assert kept < all_weights.numel()


def test_the_salience_of_the_token_before_decides(model):
    witness = Witness()
    model.coterie.add_observer(witness)
    with (
        model.coterie.adapt_experts(AdaptiveExperts(k_min=1)) as adaptation,
        model.coterie.salience() as trace,
    ):
        generate(model)
    ranks, counts = {True: SalienceRank(), False: SalienceRank()}, []
    for token in trace.tokens:
        rank = ranks[token.surprise is None].rank(token.salience)
        counts.append(2 if rank is None else 1 + min(int(2 * rank), 1))
    decoded = [token for token in trace.tokens if token.phase == "decode"]
    expected = counts[-len(decoded) - 1 : -1]  # by the token before each
    got = [witness.requested[token.step] for token in decoded]
    assert got == [[count] * LAYERS for count in expected]
    assert {1, 2} == set(expected)
    prompt = len(trace.tokens) - len(decoded)
    assert adaptation.tokens == {1: expected.count(1), 2: expected.count(2) + prompt}
    assert adaptation.kept == LAYERS * (sum(expected) + 2 * prompt)


def test_each_sequence_of_a_batch_has_its_own_number(model):
    inputs = ZOO["qwen3_moe"].inputs(seed=1, batch=3, length=12)
    with model.coterie.adapt_experts("wake") as adaptation:
        model.generate(**inputs, max_new_tokens=9, do_sample=False)
    assert sum(adaptation.tokens.values()) == 3 * (12 + 8)
    assert adaptation.tokens[1] > 0
    assert adaptation.kept == LAYERS * sum(number * tokens for number, tokens in adaptation.tokens.items())


def test_a_prompt_of_one_token_is_no_token_after_another(model):
    with model.coterie.adapt_experts(AdaptiveExperts(k_min=1)) as adaptation:
        generate(model)
        before = adaptation.tokens.copy()
        logits(model, ZOO["qwen3_moe"].inputs(seed=3, length=1))
    assert adaptation.tokens - before == {2: 1}


def test_outside_the_context_nothing_is_left_out(model):
    expected = generate(model)
    for how in ("wake", "gate:1", AdaptiveExperts(k_max=1)):
        with model.coterie.adapt_experts(how):
            generate(model)
        with pytest.raises(ZeroDivisionError), model.coterie.adapt_experts(how):
            raise ZeroDivisionError
        assert torch.equal(generate(model), expected)


def test_one_context_at_a_time(model):
    with (
        model.coterie.adapt_experts("wake"),
        pytest.raises(UsageError, match="limited already"),
        model.coterie.adapt_experts("focus"),
    ):
        pass
    with pytest.raises(UsageError, match="Did you mean 'focus'"), model.coterie.adapt_experts("focsu"):
        pass


@pytest.mark.parametrize("missing", ["mask", "drop", "nearest"])
def test_with_absent_experts(missing, zoo_store, open_model):
    model = open_model(zoo_store("qwen3_moe", torch.float32, experts="0-3"), missing=missing)
    inputs = ZOO["qwen3_moe"].inputs(seed=1)
    plain = logits(model, inputs)
    absent = model.coterie.stats().total.absent
    with model.coterie.adapt_experts(AdaptiveExperts(k_max=1)) as adaptation:
        assert not torch.equal(logits(model, inputs), plain)
    pairs = 2 * LAYERS * inputs["input_ids"].numel()
    assert adaptation.kept < adaptation.chosen <= pairs
    # What is absent is counted as before, what is left out is not; what was dropped was not there to be left out.
    again = model.coterie.stats().total.absent - absent
    assert (again > 0) == (absent > 0)
    if missing == "drop":
        assert adaptation.chosen <= pairs - again


@pytest.mark.parametrize(
    "name", sorted({"llama4_text_top3", "jetmoe", "dbrx", "gpt_oss", "mixtral"} & set(ZOO | UNDECORATED))
)
def test_other_classes(name, zoo_store, zoo_checkpoint, open_model, tmp_path):
    zoo = (ZOO | UNDECORATED)[name]
    if zoo.why_not:
        pytest.skip(zoo.why_not)
    if name in ZOO:
        model = open_model(zoo_store(name))
    else:
        zoo.build(torch.float32).save_pretrained(tmp_path / "model")
        model = open_model(tmp_path / "model")
    inputs = zoo.inputs(seed=1)
    expected = logits(model, inputs)
    with model.coterie.adapt_experts(AdaptiveExperts(k_max=1)) as adaptation:
        found = logits(model, inputs)
    assert found.isfinite().all()
    assert not torch.equal(found, expected)
    assert 0 < adaptation.kept < adaptation.chosen
    assert torch.equal(logits(model, inputs), expected)


def test_native_layers_leave_the_experts_to_their_module(zoo_checkpoint, tmp_path, open_model, monkeypatch):
    if library() is None:
        pytest.skip("the native library was not built")
    extract(zoo_checkpoint("qwen3_moe", BF16), tmp_path / "store", scheme="int4", dense_scheme="int4")
    model, witness = open_model(tmp_path / "store"), Witness()
    expected = generate(model)
    computed = []
    original = TokenExperts.compute

    def compute(self, state):
        whole = original(self, state)
        computed.append(whole is not None)
        return whole

    monkeypatch.setattr(TokenExperts, "compute", compute)
    model.coterie.add_observer(witness)
    with model.coterie.adapt_experts(AdaptiveExperts(k_max=1)):
        assert not torch.equal(generate(model), expected)
    assert computed == [False] * LAYERS * (NEW - 1)
    decoded = [asked for step, asked in witness.requested.items() if witness.phases[step] == "decode"]
    assert decoded == [[1] * LAYERS] * (NEW - 1)
    assert torch.equal(generate(model), expected)
    assert any(computed)


def test_what_is_read_early_is_no_more_than_what_is_computed(zoo_store, open_model):
    model = open_model(zoo_store("qwen3_moe", BF16), expert_memory="40%", prefetch="on")
    before = model.coterie.stats().prefetch_hinted
    with model.coterie.adapt_experts(AdaptiveExperts(k_max=1)):
        generate(model)
    few = model.coterie.stats().prefetch_hinted - before
    # One prediction for each of the layers after the first, of every token.
    assert 0 < few <= NEW * (LAYERS - 1) + LAYERS

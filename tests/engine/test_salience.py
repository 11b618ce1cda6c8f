"""Salience of what a running model computes: right, and without changing it."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
import torch

from coterie.engine.salience import SalienceReport
from coterie.errors import UsageError
from coterie.extraction import extract
from coterie.generation.interruption import stoppable
from coterie.native import library
from coterie.passes.current import Stopped
from coterie.profiles.salience import SalienceScale
from coterie.spec.json_schema import json_schema
from zoo import ZOO, logits

BF16 = torch.bfloat16
NEW = 6


class Witness:
    """Keeps events by kind."""

    wants_contributions = True

    def __init__(self) -> None:
        self.events: dict[str, list[Any]] = {"ExpertsSelected": [], "ExpertsContributed": []}

    def on_event(self, event: Any) -> None:
        if type(event).__name__ in self.events:
            self.events[type(event).__name__].append(event)


@pytest.fixture
def model(zoo_store, open_model):
    return open_model(zoo_store("qwen3_moe", BF16), expert_memory="40%")


def generate(model: Any, name: str = "qwen3_moe", **options: Any) -> torch.Tensor:
    return model.generate(**ZOO[name].inputs(seed=1), max_new_tokens=NEW, do_sample=False, **options)


def test_scores_are_those_of_the_events_and_of_the_stock_models_losses(model, zoo_stock):
    expected, witness = generate(model), Witness()
    model.coterie.add_observer(witness)
    with model.coterie.salience() as trace:
        tokens = generate(model)
    assert torch.equal(tokens, expected)
    inputs = ZOO["qwen3_moe"].inputs(seed=1)
    prompt = inputs["input_ids"].shape[1]
    assert [one.token_id for one in trace.tokens] == tokens[0, :-1].tolist()
    assert [one.phase for one in trace.tokens] == ["prefill"] * prompt + ["decode"] * (NEW - 1)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            zoo_stock("qwen3_moe", BF16)(tokens).logits[0, :-1].float(), tokens[0, 1:], reduction="none"
        )
    scale, position, banks = SalienceScale([8, 8]), 0, 2
    selected, added = witness.events["ExpertsSelected"], witness.events["ExpertsContributed"]
    for step in range(NEW):
        layers, sums = selected[step * banks : step * banks + banks], added[step * banks : step * banks + banks]
        for row in range(len(layers[0].expert_ids)):
            score = scale.score(
                [event.expert_ids[row] for event in layers],
                [event.weights[row] for event in layers],
                sizes=np.array([event.contributions[row].sum() for event in sums]),
            )
            found = trace.tokens[position]
            assert (found.novelty, found.conflict, found.reward) == (score.novelty, score.conflict, 0.5)
            assert found.arousal == pytest.approx(score.arousal)
            position += 1
    known = [one.surprise for one in trace.tokens]
    mean, seen = 0.0, 0
    for number, loss in enumerate(losses.tolist()[:-1], start=1):
        if known[number] is None:  # a prompt's logits need not be computed
            assert number < prompt
            continue
        against = 0.5 if not seen else loss / (loss + mean)
        assert known[number] == pytest.approx(against, abs=0.02)
        mean, seen = mean + (loss - mean) / (seen + 1), seen + 1
    assert seen >= NEW - 1


def test_a_prompts_losses_are_known_where_all_logits_are_computed(model):
    inputs = ZOO["qwen3_moe"].inputs(seed=2)
    with model.coterie.salience() as trace:
        logits(model, inputs)
        logits(model, inputs)
    known = [one.surprise is not None for one in trace.tokens]
    length = inputs["input_ids"].shape[1]
    assert known == ([False] + [True] * (length - 1)) * 2
    # The same routing again is nothing new.
    assert all(one.novelty < 1e-5 for one in trace.tokens[length:])


def test_reward_is_the_callers(model):
    with model.coterie.salience(reward=0.25) as trace:
        logits(model, ZOO["qwen3_moe"].inputs(length=4))
        trace.reward = 1
        logits(model, ZOO["qwen3_moe"].inputs(length=3))
    assert [one.reward for one in trace.tokens] == [0.25] * 4 + [1.0] * 3
    one = trace.tokens[-1]
    assert one.salience == pytest.approx((one.surprise + one.novelty + one.arousal + 1 + one.conflict) / 5)
    with pytest.raises(UsageError):
        trace.reward = 1.5
    with pytest.raises(UsageError), model.coterie.salience(reward=-1):
        pass


def test_padding_is_left_out(model):
    inputs = ZOO["qwen3_moe"].inputs(seed=1, batch=2, length=6)
    inputs["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    with model.coterie.salience() as trace:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert [one.position for one in trace.tokens] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11] + [0, 1] * 2


def test_a_pass_that_is_stopped_leaves_nothing_behind(model):
    with model.coterie.salience() as trace:
        with pytest.raises(Stopped), stoppable(lambda: True):
            logits(model, ZOO["qwen3_moe"].inputs(length=9))
        assert not trace.tokens
        logits(model, ZOO["qwen3_moe"].inputs(length=7))
    logits(model, ZOO["qwen3_moe"].inputs(length=5))  # outside
    assert len(trace.tokens) == 7


def test_several_threads(model):
    def run(length: int) -> None:
        for _ in range(3):
            logits(model, ZOO["qwen3_moe"].inputs(seed=length, length=length))

    with model.coterie.salience() as trace:
        threads = [threading.Thread(target=run, args=(length,)) for length in (5, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(trace.tokens) == 3 * (5 + 9)
    assert sum(one.surprise is None for one in trace.tokens) == 6


@pytest.mark.parametrize("name", sorted({"llama4_text", "gpt_oss", "mixtral", "qwen3_omni_thinker"} & set(ZOO)))
def test_other_classes(name, zoo_store, open_model):
    model = open_model(zoo_store(name))
    expected = generate(model, name)
    with model.coterie.salience() as trace:
        assert torch.equal(generate(model, name), expected)
    decoded = [one for one in trace.tokens if one.phase == "decode"]
    assert len(decoded) == NEW - 1
    assert all(one.surprise is not None for one in decoded)


@pytest.mark.parametrize("scheme", ["int4"])
def test_native_layers_compute_the_same(scheme, zoo_checkpoint, tmp_path, open_model):
    if library() is None:
        pytest.skip("the native library was not built")
    extract(zoo_checkpoint("qwen3_moe", BF16), tmp_path / "store", scheme=scheme, dense_scheme=scheme)
    model = open_model(tmp_path / "store")
    expected = generate(model)
    with model.coterie.salience() as trace:
        assert torch.equal(generate(model), expected)
    assert all(one.surprise is not None for one in trace.tokens if one.phase == "decode")
    assert all(one.arousal is not None for one in trace.tokens)


def test_a_report_is_written_whole(model, tmp_path):
    path = tmp_path / "salience.json"
    with model.coterie.salience() as trace:
        with pytest.raises(UsageError):
            trace.save(path)
        generate(model)
    trace.save(path)
    found = json.loads(path.read_text())
    assert found == json.loads(json.dumps(trace.to_dict()))
    assert (found["schema_version"], found["identity"]) == (1, model.coterie.source.identity)
    schema = json_schema(SalienceReport)
    assert set(schema["required"]) <= set(found)
    assert set(found["tokens"][0]) >= {"surprise", "novelty", "arousal", "reward", "conflict", "salience"}

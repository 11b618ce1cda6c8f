"""The parts of a step: complete, disjoint, and gone when the measurement is over."""

import threading
import time

import pytest
import torch
from torch import nn

from coterie.bench import breakdown
from coterie.bench.breakdown import PARTS, _Stopwatch, _Timed
from coterie.errors import UsageError
from coterie.extraction import extract
from coterie.integration import TokenLayer
from coterie.native import STAGES, NativeLayer, library
from coterie.passes.forwards import own
from zoo import ZOO

BF16 = torch.bfloat16
NAMES = ["qwen2_moe", "deepseek_v3", "mixtral", "gpt_oss", "jamba", "lfm2_moe"]


@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up_and_every_layer_is_timed(name, zoo_store, open_model):
    model = open_model(zoo_store(name, BF16), expert_memory="25%")
    parts = breakdown(model, ZOO[name].inputs(seed=1)["input_ids"], 5)
    banks = model.coterie.expert_banks
    assert set(parts.parts) == set(PARTS)
    assert sum(parts.parts.values()) == pytest.approx(parts.step_s)
    assert parts.dense_s + parts.glue_s + parts.parts["experts"] + parts.parts["waiting"] == pytest.approx(parts.step_s)
    assert all(seconds > 0 for part, seconds in parts.parts.items() if part != "waiting")
    assert parts.parts["waiting"] >= 0
    assert parts.calls["experts"] == len(banks)
    assert parts.calls["router"] == len(banks)
    assert parts.calls["attention"] >= len(banks)
    assert parts.calls["glue"] == 1
    assert parts.steps == 4


def test_linear_layers_in_a_scheme_are_timed_as_others_are(zoo_checkpoint, tmp_path, open_model):
    directory = zoo_checkpoint("qwen3_moe", BF16)
    extract(directory, tmp_path / "store", scheme="int4", dense_scheme="int4")
    prompt = ZOO["qwen3_moe"].inputs(seed=1)["input_ids"]
    plain, coded = (breakdown(open_model(path), prompt, 3).calls for path in (directory, tmp_path / "store"))
    assert coded == plain


def test_native_layers_say_themselves_what_they_took(zoo_checkpoint, tmp_path, open_model, monkeypatch):
    if library() is None:
        pytest.skip("the native library was not built")
    extract(zoo_checkpoint("qwen3_moe", BF16), tmp_path / "store", scheme="int4", dense_scheme="int4")
    model = open_model(tmp_path / "store")
    layers = [one for module in model.modules() if isinstance(one := own(module), TokenLayer)]
    taken, take = [], NativeLayer.take

    def noted(self, hidden, cosine, sine, times=None):
        taken.append(times)
        return take(self, hidden, cosine, sine, times)

    monkeypatch.setattr(NativeLayer, "take", noted)
    parts = breakdown(model, ZOO["qwen3_moe"].inputs(seed=1)["input_ids"], 5)
    times = [one for one in taken if one is not None]
    assert len(taken) == 2 * len(times) == 2 * 4 * len(layers) > 0
    # Nothing is timed before the first of the steps that count.
    assert all(one.passes == one.with_experts == 4 for one in times)
    stages = [sum(one.seconds[i] for one in times) / 4 / 4 for i in range(len(STAGES))]
    assert min(stages) > 0
    assert parts.parts["experts"] == pytest.approx(stages[STAGES.index("experts")])
    assert sum(parts.parts.values()) == pytest.approx(parts.step_s)
    assert parts.parts["attention"] >= stages[STAGES.index("attention")]
    assert all(seconds > 0 for part, seconds in parts.parts.items() if part != "waiting")
    assert all(layer.times is None and layer.intact for layer in layers)


def test_a_layer_that_calls_its_modules_goes_on_doing_so(zoo_checkpoint, tmp_path, open_model):
    if library() is None:
        pytest.skip("the native library was not built")
    extract(zoo_checkpoint("qwen3_moe", BF16), tmp_path / "store", scheme="int4", dense_scheme="int4")
    model = open_model(tmp_path / "store")
    module = model.model.layers[0].self_attn
    forward, calls = module.forward, []
    module.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    breakdown(model, ZOO["qwen3_moe"].inputs(seed=1)["input_ids"], 3)
    assert len(calls) == 6
    assert not own(model.model.layers[0]).intact


def test_the_model_is_as_before(zoo_store, open_model):
    model = open_model(zoo_store("qwen3_moe", BF16))
    before = {path: own(module) for path, module in model.named_modules()}
    inputs = ZOO["qwen3_moe"].inputs(seed=1)
    expected = model(**inputs).logits

    class Stop(Exception):
        pass

    def stop(count):
        if count == 3:
            raise Stop

    breakdown(model, inputs["input_ids"], 3)
    with pytest.raises(Stop):
        breakdown(model, inputs["input_ids"], 4, on_token=stop)
    assert {path: own(module) for path, module in model.named_modules()} == before
    assert torch.equal(model(**inputs).logits, expected)


def test_too_few_tokens(zoo_store, open_model):
    with pytest.raises(UsageError, match="at least 3"):
        breakdown(open_model(zoo_store("qwen3_moe", BF16)), ZOO["qwen3_moe"].inputs()["input_ids"], 2)


def test_nested_time_belongs_to_the_inner_part(monkeypatch):
    now = 0.0

    def work(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    watch = _Stopwatch()
    inner = _Timed(watch, "linear", lambda: work(2))

    def middle():
        work(3)
        inner()
        inner()

    attention = _Timed(watch, "attention", middle)

    def outer():
        work(1)
        attention()

    _Timed(watch, "glue", outer)()
    assert watch.seconds == {"linear": 4, "attention": 3, "glue": 1}
    assert watch.calls == {"linear": 2, "attention": 1, "glue": 1}


def test_a_failed_call_is_closed_and_other_threads_are_let_through():
    watch = _Stopwatch()

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _Timed(watch, "linear", fail)()
    assert not watch._nested
    layer = nn.Identity()
    forward = _Timed(watch, "linear", layer.forward)
    thread = threading.Thread(target=forward, args=(torch.ones(1),))
    thread.start()
    thread.join(60)
    assert watch.calls == {"linear": 1}

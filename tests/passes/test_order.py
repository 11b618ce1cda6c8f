"""Prompts say what they will ask for next: in the right order, and without a change in what is computed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from coterie.passes.order import LayerOrder
from coterie.records import RecordReader
from coterie.spec import ExpertKey
from zoo import ZOO, logits

BF16 = torch.bfloat16

FAMILIES = ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss")


def keys(layer: int, count: int = 8) -> list[ExpertKey]:
    return [ExpertKey("text", layer, "mlp", expert) for expert in range(count)]


def three_layers() -> LayerOrder:
    order = LayerOrder()
    for layer in range(3):
        order.add(str(layer), keys(layer))
    return order


def test_the_first_pass_goes_by_the_order_of_the_layers():
    order = three_layers()
    assert list(order.reached("0", number=0, wanted=8)) == keys(1) + keys(2)
    assert list(order.reached("2", number=0, wanted=8)) == []


def test_the_order_that_turns_out_is_kept():
    order = three_layers()
    for step in range(2):
        announced = [list(order.reached(site, step, wanted=8)) for site in "201"]
    assert announced == [keys(0) + keys(1), keys(1), []]


def test_a_new_pass_follows_nothing():
    order = three_layers()
    for step in range(2):
        order.reached("2", step, wanted=8)
        order.reached("0", step + 10, wanted=8)
    assert list(order.reached("2", number=20, wanted=8)) == []


def test_places_in_a_circle_are_announced_once():
    order = three_layers()
    for site in "0101":
        announced = list(order.reached(site, 0, wanted=8))
    assert announced == keys(0)


@pytest.mark.parametrize(("wanted", "announces"), [(5, False), (6, True)])
def test_few_experts_announce_nothing(wanted, announces):
    assert bool(list(three_layers().reached("0", number=0, wanted=wanted))) is announces


def test_threads_do_not_mix():
    order = three_layers()
    order.reached("2", number=0, wanted=8)
    thread = threading.Thread(target=order.reached, args=("0", 0, 8))
    thread.start()
    thread.join()
    assert list(order.reached("2", number=0, wanted=8)) == []


# --- models -----------------------------------------------------------------------------------------------------------


def slow(monkeypatch, seconds):
    """Has every read of an expert take a while, during which nobody has the interpreter."""
    prepare = RecordReader.prepare

    def slowly(*args):
        threading.Event().wait(seconds)
        return prepare(*args)

    monkeypatch.setattr(RecordReader, "prepare", slowly)


def layers_of_memory(model_path, open_model, layers):
    model = open_model(model_path)
    banks = len(model.coterie.banks)
    return int(model.coterie.cache.total_bytes * layers / banks)


@pytest.mark.parametrize("layers", [1, 1.3, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_prompts_are_those_of_stock(name, layers, zoo_store, zoo_stock, open_model, monkeypatch):
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    path = zoo_store(name, BF16)
    nbytes = layers_of_memory(path, open_model, layers)
    model = open_model(path, expert_memory=max(nbytes, open_model(path).coterie.cache.minimum))
    slow(monkeypatch, 0.0005)
    for seed in (3, 4):
        inputs = ZOO[name].inputs(seed=seed, length=48)
        assert torch.equal(logits(model, inputs), logits(zoo_stock(name, BF16), inputs))


def prompt(model, seed, length=64):
    ids = torch.randint(20, 8000, (1, length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_prompts_are_read_ahead_whatever_prefetch_is(open_model, monkeypatch):
    model = open_model("bundled", expert_memory="50%")
    expected = prompt(open_model("bundled", expert_memory="100%"), 1, 256)
    slow(monkeypatch, 0.001)
    for _ in range(2):
        assert torch.equal(prompt(model, 1, 256), expected)
    cache, stats = model.coterie.cache.stats(), model.coterie.stats()
    assert cache.announced_issued >= cache.announced_used > 0
    assert stats.prefetch_issued == stats.prefetch_bytes == 0
    record = max(model.coterie.source.record_nbytes.values())
    wasted = (cache.announced_issued - cache.announced_used) * record
    assert stats.total.bytes_read <= cache.bytes_read <= stats.total.bytes_read + wasted
    assert stats.total.misses * record == stats.total.bytes_read


def test_decode_steps_announce_nothing(open_model):
    model = open_model("bundled", expert_memory="25%")
    ids = torch.randint(20, 8000, (1, 4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert model.coterie.cache.stats().announced_issued == 0


def test_prompts_of_several_threads(open_model):
    reference = open_model("bundled", expert_memory="100%")
    expected = [prompt(reference, seed, 128) for seed in range(3)]
    model = open_model("bundled", expert_memory="12.5%")

    def run(seed):
        return [prompt(model, seed, 128) for _ in range(2)]

    with ThreadPoolExecutor(3) as pool:
        results = [future.result(timeout=250) for future in [pool.submit(run, seed) for seed in range(3)]]
    for got, wanted in zip(results, expected, strict=True):
        assert all(torch.equal(one, wanted) for one in got)


def test_an_interrupted_prompt_leaves_a_model_that_works(open_model):
    model = open_model("bundled", expert_memory="25%")
    expected = prompt(open_model("bundled", expert_memory="100%"), 1, 256)

    class Interrupting:
        left = 3

        def on_event(self, event):
            self.left -= type(event).__name__ == "ExpertsServed"
            if self.left == 0:
                raise KeyboardInterrupt

    observer = Interrupting()
    model.coterie.add_observer(observer)
    with pytest.raises(KeyboardInterrupt):
        prompt(model, 1, 256)
    model.coterie.remove_observer(observer)
    assert torch.equal(prompt(model, 1, 256), expected)
    assert not model.coterie.cache.snapshot().predicted

"""Looking ahead changes no output, reads what will be asked for, and keeps books on both."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from coterie.cache import Consumer
from coterie.engine import resolve_path
from coterie.errors import UsageError
from coterie.passes.forwards import own
from coterie.passes.lookahead import Site
from coterie.records import RecordReader
from zoo import ZOO, stock

BF16 = torch.bfloat16
FAMILIES = ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "phimoe", "qwen3_omni_thinker")
TOKENS = 12
PROMPT = torch.randint(20, 8000, (1, 24), generator=torch.Generator().manual_seed(1))


def continued(model, name, seed=3, **options):
    with torch.no_grad():
        out = model.generate(
            **ZOO[name].inputs(seed=seed, length=12, **options),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return torch.stack(out.logits)


def bundled(open_model, mode, memory="25%", **options):
    return open_model("bundled", expert_memory=memory, prefetch=mode, **options)


def tell(model, count=40, prompt=PROMPT, **options):
    with torch.no_grad():
        return model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, **options)


def ahead_of(model, component="thinker"):
    return model.coterie._attachment.ahead[component]


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["25%", "50%"])
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_are_those_of_stock(name, memory, zoo_store, zoo_stock, open_model):
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    model = open_model(zoo_store(name, BF16), expert_memory=memory, prefetch="on")
    expected = continued(zoo_stock(name, BF16), name)
    assert torch.equal(continued(model, name), expected)
    stats = model.coterie.stats()
    assert stats.prefetch_hinted > 0, "nothing was predicted, so nothing was tested"
    assert stats.prefetch_issued >= stats.prefetch_used >= stats.prefetch_in_time


@pytest.mark.matrix
@pytest.mark.parametrize("name", sorted(ZOO))
def test_outputs_of_every_family_are_those_of_stock(name, zoo_store, zoo_stock, open_model):
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    if name == "qwen3_omni":
        pytest.skip("speaks: what it generates is compared in the tests of bit identity")
    model = open_model(zoo_store(name, BF16), expert_memory="25%", prefetch="on")
    assert torch.equal(continued(model, name, seed=4), continued(zoo_stock(name, BF16), name, seed=4))


def test_batches_are_those_of_stock(zoo_store, zoo_stock, open_model):
    model = open_model(zoo_store("qwen3_moe", BF16), expert_memory="50%", prefetch="on")
    assert torch.equal(
        continued(model, "qwen3_moe", batch=3), continued(zoo_stock("qwen3_moe", BF16), "qwen3_moe", batch=3)
    )
    assert model.coterie.stats().prefetch_hinted > 0


@pytest.mark.parametrize("missing", ["mask", "drop", "nearest"])
def test_partial_stores(missing, zoo_store, open_model):
    path = zoo_store("qwen3_moe", BF16, experts="0-5")
    models = [open_model(path, expert_memory="50%", missing=missing, prefetch=mode) for mode in ("off", "on")]
    off, on = (continued(model, "qwen3_moe") for model in models)
    assert torch.equal(off, on)
    assert models[1].coterie.stats().prefetch_hinted > 0


def test_several_threads(open_model):
    reference = stock(resolve_path("bundled"), BF16)
    model = bundled(open_model, "on", "12.5%")
    prompts = [torch.randint(20, 8000, (1, 10 + n), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    barrier = threading.Barrier(3)

    def run(prompt):
        torch.set_num_threads(1)
        barrier.wait(timeout=120)
        return tell(model, 10, prompt)

    with ThreadPoolExecutor(3) as pool:
        results = [future.result(timeout=250) for future in [pool.submit(run, prompt) for prompt in prompts]]
    assert all(torch.equal(r, tell(reference, 10, p)) for r, p in zip(results, prompts, strict=True))


def test_an_interrupt_leaves_a_model_that_works(open_model):
    model = bundled(open_model, "on", "12.5%")
    expected = tell(bundled(open_model, "off", "100%"), 8)
    calls = 0

    class Interrupting:
        def on_event(self, event):
            nonlocal calls
            calls += 1
            if calls in (40, 111, 222):
                raise KeyboardInterrupt

    observer = Interrupting()
    model.coterie.add_observer(observer)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            tell(model, 30)
    model.coterie.remove_observer(observer)
    assert torch.equal(tell(model, 8), expected)
    assert len(model.coterie.cache.snapshot().predicted) <= 1


# --- predicting -------------------------------------------------------------------------------------------------------


def test_a_trained_model_is_predicted_right_more_often_than_not(open_model):
    model = bundled(open_model, "on")
    tell(model, 40)
    stats = model.coterie.stats()
    assert stats.prefetch_verdicts == {"thinker": "pays"}
    assert stats.prefetch_used > 0.6 * stats.prefetch_issued > 0
    assert stats.prefetch_bytes > 0
    plain = stats.to_dict()
    assert plain["prefetch_used"] == stats.prefetch_used
    assert plain["prefetch_verdicts"] == {"thinker": "pays"}


def test_prefetched_experts_are_hits(open_model, monkeypatch):
    models = {mode: bundled(open_model, mode, eviction="lru") for mode in ("off", "on")}
    slow(monkeypatch, 0.002)
    for model in models.values():
        tell(model, 24)
    off, on = (models[mode].coterie.stats() for mode in ("off", "on"))
    assert off.prefetch_hinted == off.prefetch_issued == off.prefetch_bytes == 0
    assert off.prefetch_verdicts == {}
    assert 0 < on.prefetch_in_time <= on.prefetch_used <= on.prefetch_issued


def slow(monkeypatch, seconds):
    """Has every read of an expert take a while, during which nobody has the interpreter."""
    prepare = RecordReader.prepare

    def slowly(*args):
        read = prepare(*args)
        step = read.steps[0]
        run = step.run

        class Slow:
            def run(self):
                threading.Event().wait(seconds)
                run()

            def close(self):
                step.close()

        read.steps = [Slow(), *read.steps[1:]]
        return read

    monkeypatch.setattr(RecordReader, "prepare", slowly)


def test_nothing_is_predicted_while_everything_is_resident(open_model, monkeypatch):
    model = bundled(open_model, "on", "100%")
    tell(model, 3)
    cache = model.coterie.cache
    with cache.lease(model.coterie.source.experts.keys(), consumer=Consumer()) as lease:
        assert sum(1 for _ in lease) == 8 * 32
    assert cache.all_resident
    monkeypatch.setattr(Site, "predict", lambda *_: pytest.fail("a prediction was made"))
    tell(model, 5)
    assert model.coterie.stats().prefetch_verdicts == {"thinker": "complete"}


def test_sites_find_their_order(open_model):
    model = bundled(open_model, "on")
    tell(model, 3)
    sites = ahead_of(model)._sites
    assert [site.follower for site in sites] == [*sites[1:], None]


def test_off_leaves_the_routers_alone(open_model):
    model = bundled(open_model, "off")
    assert not model.coterie._attachment.ahead
    block = model.get_submodule(model.coterie.expert_banks[0].router_block)
    assert own(block.gate) is None


def test_an_unknown_setting_is_refused():
    from coterie.engine import load

    with pytest.raises(UsageError, match="prefetch"):
        load("bundled", prefetch="always")

"""Several models in one process, several threads on one model, several threads in torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from coterie.engine import resolve_path
from zoo import ZOO, logits, stock

BF16 = torch.bfloat16
PAIR = ("qwen3_moe", "gpt_oss")


def test_two_models_interleaved(zoo_store, zoo_stock, open_model):
    models = {name: open_model(zoo_store(name, BF16), expert_memory="25%") for name in PAIR}
    twin = open_model(zoo_store("qwen3_moe", BF16), expert_memory="100%")
    for seed in range(3):
        for name in PAIR:
            inputs = ZOO[name].inputs(seed=seed)
            assert torch.equal(logits(models[name], inputs), logits(zoo_stock(name, BF16), inputs))
        inputs = ZOO["qwen3_moe"].inputs(seed=seed)
        assert torch.equal(logits(twin, inputs), logits(zoo_stock("qwen3_moe", BF16), inputs))
    assert twin.coterie.stats().total.evictions == 0
    assert models["qwen3_moe"].coterie.stats().total.evictions > 0


def run_together(jobs: list[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
    """Starts all at once; each on its own thread."""
    barrier = threading.Barrier(len(jobs))

    def run(job: Callable[[], torch.Tensor]) -> torch.Tensor:
        torch.set_num_threads(1)
        barrier.wait(timeout=120)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(timeout=250) for future in [pool.submit(run, job) for job in jobs]]


def test_two_models_in_two_threads(zoo_store, zoo_stock, open_model):
    models = {name: open_model(zoo_store(name, BF16), expert_memory="25%") for name in PAIR}

    def job(name: str) -> Callable[[], torch.Tensor]:
        return lambda: models[name].generate(**ZOO[name].inputs(seed=5), max_new_tokens=10, do_sample=False)

    results = run_together([job(name) for name in PAIR])
    for name, result in zip(PAIR, results, strict=True):
        expected = zoo_stock(name, BF16).generate(**ZOO[name].inputs(seed=5), max_new_tokens=10, do_sample=False)
        assert torch.equal(result, expected)


@pytest.mark.parametrize("memory", ["25%", "100%"])
@pytest.mark.parametrize("name", PAIR)
def test_one_model_in_four_threads(name, memory, zoo_store, zoo_stock, open_model):
    model = open_model(zoo_store(name, BF16), expert_memory=memory)

    def job(seed: int) -> Callable[[], torch.Tensor]:
        inputs = ZOO[name].inputs(seed=seed, length=16)
        return lambda: torch.cat([logits(model, inputs) for _ in range(3)])

    for seed, result in enumerate(run_together([job(seed) for seed in range(4)])):
        expected = logits(zoo_stock(name, BF16), ZOO[name].inputs(seed=seed, length=16))
        assert torch.equal(result, expected.repeat(3, 1, 1))


def test_two_torch_threads_on_a_model_with_parallel_products(two_threads, open_model):
    model = open_model("bundled", expert_memory="25%")
    reference = stock(resolve_path("bundled"), BF16)
    ids = torch.randint(20, 8000, (2, 70), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, reference(input_ids=ids).logits)
    options = {"max_new_tokens": 12, "do_sample": False}
    prompt = ids[:1, :20]
    assert torch.equal(model.generate(prompt, **options), reference.generate(prompt, **options))
    assert torch.get_num_threads() == 2

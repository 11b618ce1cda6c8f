"""A seed gives the same text in every thread, alone or beside others, and disturbs nobody's random numbers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from coterie.engine.loader import load
from coterie.generation.completion import complete
from coterie.generation.draws import Draws, drawing
from coterie.generation.inputs import build_inputs
from coterie.generation.processors import Processors
from coterie.generation.sampling import Sampling


@pytest.fixture(scope="module")
def opened():
    model = load("bundled", expert_memory="100%")
    yield model, Processors(model.coterie.source.directory)
    model.coterie.close()


def text(opened, seed: int, **wishes) -> tuple[int, ...]:
    model, processors = opened
    inputs = build_inputs(processors, "And it came to pass")
    sampling = Sampling(max_new_tokens=12, seed=seed, **{"temperature": 1.2, "top_p": 0.95, **wishes})
    return complete(model, processors.tokenizer, inputs, sampling).token_ids


def test_the_text_of_a_seed_is_that_of_torchs_own_generator(opened):
    model, processors = opened
    inputs = build_inputs(processors, "And it came to pass")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=True, temperature=1.2, top_p=0.95)
    start = inputs["input_ids"].shape[1]
    assert text(opened, 7) == tuple(expected[0, start:].tolist())


def test_threads_get_the_texts_of_their_seeds(opened):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = [text(opened, seed) for seed in range(6)]
    assert len(set(alone)) > 3
    state = torch.random.get_rng_state()
    barrier, stop = threading.Barrier(6), threading.Event()

    def work(seed: int) -> tuple[int, ...]:
        torch.set_num_threads(1)
        barrier.wait(timeout=120)
        return text(opened, seed)

    def disturb() -> None:
        while not stop.is_set():
            torch.manual_seed(0)
            torch.rand(3)

    noise = threading.Thread(target=disturb, daemon=True)
    noise.start()
    try:
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(work, range(6), timeout=250))
    finally:
        stop.set()
        noise.join(60)
        torch.set_num_threads(threads)
    assert together == alone
    torch.random.set_rng_state(state)


def test_the_processs_numbers_go_on_as_if_nothing_had_been(opened):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = torch.rand(2)
        torch.manual_seed(1)
        text(opened, 3)
        assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.multinomial(torch.ones(50), 4),
        lambda: torch.ones(50).multinomial(4),
        lambda: torch.rand(3),
        lambda: torch.randn(3),
        lambda: torch.randint(1000, (4,)),
        lambda: torch.randperm(20),
        lambda: torch.bernoulli(torch.full((30,), 0.5)),
        lambda: torch.empty(5).exponential_(),
        lambda: torch.empty(5).uniform_(),
        lambda: torch.empty(5).normal_(),
    ],
)
def test_whatever_is_drawn_comes_of_the_seed(draw):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        expected = draw()
    with drawing(9) as draws:
        assert draws is not None
        draws.begin()
        draws.begin()
        assert torch.equal(draw(), expected)
        draws.end()
        draws.end()


def test_an_error_ends_them_and_no_seed_begins_none():
    before = torch.overrides._get_current_function_mode()

    def interrupted() -> None:
        with drawing(1) as draws:
            assert isinstance(draws, Draws)
            draws.begin()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.overrides._get_current_function_mode() is before
    with drawing(None) as none:
        assert none is None

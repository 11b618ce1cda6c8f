"""Several clients, a third of whom leave: no lost, mixed or hanging answer. A crowd of them has a folder of its own."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.sampling import Sampling
from server.conftest import PROMPT, Served, drop, until

_CLIENTS = 8
_REQUESTS = 64


def test_answers_are_each_one_s_own_whoever_leaves(serve, opened) -> None:
    server: Served = serve(engine={"most_waiting": 64})
    seeds = range(6)
    inputs = build_inputs(opened.processors, PROMPT)
    expected = [
        complete(
            opened.model, opened.processors.tokenizer, inputs, Sampling(max_new_tokens=4, temperature=1.3, seed=seed)
        ).text
        for seed in seeds
    ]  # fmt: skip

    def one(number: int) -> str:
        draw = random.Random(number)
        seed = draw.choice(seeds)
        asked = {"prompt": PROMPT, "max_tokens": 4, "temperature": 1.3, "seed": seed}
        if draw.random() < 0.33:
            connection, response = server.begin("/v1/completions", asked | {"stream": True})
            threading.Event().wait(draw.random() * 0.05)
            drop(connection, response)
            return "left"
        if draw.random() < 0.5:
            events = server.post("/v1/completions", asked | {"stream": True}).events
            assert events[-1][1] == "[DONE]"
            text = "".join(data["choices"][0]["text"] for _, data in events[:-1])
        else:
            answer = server.post("/v1/completions", asked)
            assert answer.status == 200
            text = answer.json["choices"][0]["text"]
        assert text == expected[seed]
        return "answered"

    with ThreadPoolExecutor(_CLIENTS) as pool:
        ends = list(pool.map(one, range(_REQUESTS)))
    assert {"left", "answered"} == set(ends)
    until(lambda: server.engine.running == 0 and server.engine.waiting == 0)
    assert server.get("/readyz").status == 200

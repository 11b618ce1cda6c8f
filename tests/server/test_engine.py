"""Requests that wait, are given up, fail, and what that does to the others: nothing."""

import asyncio
import gc
import json
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from coterie.errors import ReadError
from coterie.generation import model_thread
from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.sampling import Sampling
from coterie.generation.tickets import Ticket
from coterie.server import service as service_module
from server.conftest import PROMPT, Answer, Served, chat, drop, until

PATH = "/v1/completions"


def ask(prompt: str = PROMPT, **more):
    return {"prompt": prompt, "max_tokens": 8, "temperature": 0} | more


def alone(opened, prompt: str, seed: int | None = None) -> str:
    wishes = Sampling(max_new_tokens=8, temperature=0 if seed is None else 1.2, seed=seed)
    return complete(opened.model, opened.processors.tokenizer, build_inputs(opened.processors, prompt), wishes).text


def cancelled(server: Served, phase: str) -> float:
    return server.meters.registry.get_sample_value("coterie_cancelled_total", {"phase": phase}) or 0.0


def test_many_at_once_get_their_own_answers(serve, opened) -> None:
    server = serve(engine={"most_waiting": 32})
    prompts = [f"{PROMPT} that day {number}" for number in range(12)]
    expected = [alone(opened, prompt, seed) for seed, prompt in enumerate(prompts)]

    def one(number: int) -> str:
        answer = server.post(PATH, ask(prompts[number], temperature=1.2, seed=number))
        return answer.json["choices"][0]["text"]

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, range(12))) == expected


def test_beyond_the_queue_clients_are_told_when_to_come_again(serve, brake) -> None:
    server = serve(engine={"parallel": 1, "most_waiting": 1})
    brake.hold()
    first = server.begin(PATH, ask(stream=True))
    assert brake.reached.wait(30)
    second = server.begin(PATH, ask(stream=True))
    third = server.post(PATH, ask())
    assert (third.status, third.error["code"], third.error["type"]) == (429, "queue_full", "rate_limit_error")
    assert int(third.headers["retry-after"]) >= 1
    brake.release()
    assert first[1].read()
    assert second[1].read()
    assert server.post(PATH, ask()).status == 200


def test_who_waits_for_too_long_is_told(serve, brake) -> None:
    server = serve(engine={"longest_wait_s": 0.2})
    brake.hold()
    first = server.begin(PATH, ask(stream=True))
    assert brake.reached.wait(30)
    second = server.post(PATH, ask())
    assert (second.status, second.error["code"]) == (503, "queue_timeout")
    brake.release()
    assert b"[DONE]" in first[1].read()


def test_leaving_while_waiting_touches_nobody(serve, brake, opened) -> None:
    server = serve()
    brake.hold()
    running = server.begin(PATH, ask(stream=True))
    assert brake.reached.wait(30)
    leaver = server.begin(PATH, ask("gone", stream=True))
    until(lambda: server.engine.waiting == 1)
    drop(*leaver)
    until(lambda: server.engine.waiting == 0)
    assert cancelled(server, "queue") == 1
    brake.release()
    assert b"[DONE]" in running[1].read()
    assert server.post(PATH, ask()).json["choices"][0]["text"] == alone(opened, PROMPT)


@pytest.mark.parametrize(("phase", "layers"), [("prefill", 1), ("decode", 30)])
@pytest.mark.parametrize("stream", [True, False])
def test_leaving_ends_the_work_within_a_layer(serve, brake, opened, phase: str, layers: int, stream: bool) -> None:
    server = serve()
    brake.hold(after=layers)
    connection = server.connect()
    body = ask(PROMPT, max_tokens=500, stream=stream)
    connection.request("POST", PATH, json.dumps(body), {"Content-Type": "application/json"})
    assert brake.reached.wait(30)
    answers: list[Answer] = []
    waiting = threading.Thread(target=lambda: answers.append(server.post(PATH, ask())))
    waiting.start()
    until(lambda: server.engine.waiting == 1)
    connection.close()
    until(lambda: cancelled(server, phase) == 1)
    brake.release()
    waiting.join(60)
    # Of the many tokens that were asked for, none was made any more: the next one has its answer.
    assert answers[0].json["choices"][0]["text"] == alone(opened, PROMPT)
    assert server.meters.registry.get_sample_value("coterie_generation_tokens_total") == 8


def test_an_error_is_that_request_s_alone(serve, brake, opened) -> None:
    server = serve()
    brake.error = ReadError("Expert 3 of layer 1 cannot be read.", path="/secret/place/model.bin")
    failed = server.post(PATH, ask())
    assert (failed.status, failed.error["code"]) == (500, "ReadError")
    assert failed.error["message"] == "Expert 3 of layer 1 cannot be read."
    brake.error = ReadError("Cannot read /secret/place/model.bin: gone.", path="/secret/place/model.bin")
    assert server.post(PATH, ask()).error["message"] == "Cannot read model.bin: gone."
    assert server.post(PATH, ask()).json["choices"][0]["text"] == alone(opened, PROMPT)
    assert server.get("/readyz").status == 200


def test_a_panic_is_that_request_s_alone(serve, brake) -> None:
    class Panic(BaseException):
        """As Rust libraries raise."""

    server = serve()
    brake.error = Panic("secret prompt")
    failed = server.post(PATH, ask())
    assert failed.status == 500
    assert b"secret" not in failed.body
    assert server.post(PATH, ask()).status == 200


def test_when_the_model_s_thread_ends_all_are_told(serve, brake, monkeypatch) -> None:
    server = serve()
    brake.hold()
    running = server.begin(PATH, ask(stream=True))
    assert brake.reached.wait(30)
    waiting = server.begin(PATH, ask(stream=True))
    until(lambda: server.engine.waiting == 1)

    def broken(*_: object) -> None:
        raise SystemError("the thread's own code fails")

    monkeypatch.setattr(model_thread.ModelThread, "_turn", broken)
    brake.release()
    assert b"[DONE]" in running[1].read()
    assert b'"code": "unavailable"' in waiting[1].read()
    assert server.get("/readyz").status == 503
    assert server.get("/healthz").status == 200
    assert server.post(PATH, ask()).status == 503


def test_a_model_that_is_stuck_is_not_ready(serve, brake, monkeypatch) -> None:
    monkeypatch.setattr(model_thread, "STALL_S", 0.05)
    server = serve()
    brake.hold()
    running = server.begin(PATH, ask(stream=True))
    assert brake.reached.wait(30)
    until(lambda: server.get("/readyz").status == 503)
    brake.release()
    assert b"[DONE]" in running[1].read()
    assert server.get("/readyz").status == 200


def test_draining_finishes_what_runs_and_takes_nothing_on(serve, brake, opened) -> None:
    server = serve()
    brake.hold()
    running = server.begin(PATH, ask(stream=True))
    assert brake.reached.wait(30)
    server.engine.draining = True
    assert server.get("/readyz").status == 503
    refused = server.post(PATH, ask())
    assert (refused.status, refused.error["code"]) == (503, "unavailable")
    assert "retry-after" in refused.headers
    brake.release()
    assert b'"finish_reason": "length"' in running[1].read()


@pytest.mark.parametrize("stream", [True, False])
def test_draining_finishes_all_choices_of_a_request(serve, brake, monkeypatch, stream: bool) -> None:
    """Also those that are not with the engine yet."""
    monkeypatch.setattr(service_module, "AT_ONCE", 1)
    server = serve(engine={"parallel": 1})
    several = ask(n=4, temperature=1.2, seed=3, max_tokens=2)
    expected = sorted(choice["text"] for choice in server.post(PATH, several).json["choices"])
    brake.hold()
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(server.post, PATH, several | {"stream": stream})
        assert brake.reached.wait(30)
        server.engine.draining = True
        idle = pool.submit(lambda: asyncio.run(server.engine.idle(30)))
        brake.release()
        found = answer.result(60)
        assert idle.result(60)
    if not stream:
        assert sorted(choice["text"] for choice in found.json["choices"]) == expected
        return
    pieces = [data["choices"][0] for _, data in found.events[:-1]]
    texts = {number: "".join(one["text"] for one in pieces if one["index"] == number) for number in range(4)}
    assert sorted(texts.values()) == expected


def test_cutting_ends_what_runs_with_a_reason(serve, brake) -> None:
    server = serve()
    brake.hold()
    running = server.begin(PATH, ask(stream=True))
    assert brake.reached.wait(30)
    waiting = server.begin("/v1/chat/completions", chat(stream=True))
    until(lambda: server.engine.waiting == 1)
    server.engine.cut()
    brake.release()
    for _, response in (running, waiting):
        assert b'"code": "shutting_down"' in response.read()


def test_nothing_is_kept_of_a_request_that_is_over(serve) -> None:
    """Its prompt, pictures and all, would else stay for as long as it might have waited."""
    server = serve(engine={"longest_wait_s": 1000.0})
    tickets: list[weakref.ref[Ticket]] = []
    submit = server.engine.submit

    def noted(*arguments, **options):
        ticket = submit(*arguments, **options)
        tickets.append(weakref.ref(ticket))
        return ticket

    server.engine.submit = noted
    assert server.post(PATH, ask()).status == 200
    assert server.post(PATH, ask(stream=True)).events[-1][1] == "[DONE]"
    assert server.post(PATH, ask([8192])).status == 400
    assert len(tickets) == 3

    def gone() -> bool:
        gc.collect()
        return all(ticket() is None for ticket in tickets)

    until(gone, 10)

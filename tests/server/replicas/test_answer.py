"""Answers that outlive the replicas that make them."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from coterie.server.identity import Identity
from coterie.server.refusals import Refusal
from coterie.server.replicas.answer import TRIES, Answer, LostReplica
from coterie.server.replicas.ask import Ask, Head, Part, prompt_of
from coterie.server.streams import COMMENT_PING, DONE, NAMED_PING, event

STREAM = Head(200, ((b"content-type", b"text/event-stream; charset=utf-8"),))
WHOLE = Head(200, ((b"content-type", b"application/json"), (b"x-request-id", b"theirs")))
ASK = Ask(
    method="POST", path="/v1/chat/completions", query=b"", headers=(), body=b"{}", request_id="r", word="w", created=1,
    salt="", prompt="p",
)  # fmt: skip
LOST = object()
HANG = object()


class Replicas:
    """Each request to them gets the next script."""

    def __init__(self, *scripts: Sequence[Any]) -> None:
        self.scripts = list(scripts)
        self.closed = 0

    async def ask(self, ask: Ask) -> AsyncGenerator[Part]:
        assert ask is ASK
        try:
            for part in self.scripts.pop(0):
                if part is LOST:
                    raise LostReplica
                if part is HANG:
                    await asyncio.Event().wait()
                await asyncio.sleep(0)
                yield part
        finally:
            self.closed += 1


async def _stays() -> dict[str, str]:
    await asyncio.Event().wait()
    return {}


def answered(replicas: Replicas, dialect: str = "openai") -> tuple[Answer, list[bytes]]:
    async def run() -> tuple[Answer, list[bytes]]:
        answer = Answer(replicas.ask, ASK, dialect, cut=asyncio.Event())  # type: ignore[arg-type]
        assert await answer.begin(_stays)  # type: ignore[arg-type]
        return answer, [one async for one in answer.events()] if answer.head.is_stream else [answer.whole]

    return asyncio.run(run())


def chunks(count: int, **more: Any) -> list[bytes]:
    return [event({"n": n, "text": f"piece {n}", **more}) for n in range(count)]


@pytest.mark.parametrize("after", range(6))
def test_another_replica_goes_on_where_one_was_lost(after: int) -> None:
    whole = [*chunks(5), DONE]
    replicas = Replicas([STREAM, *whole[:after], LOST], [STREAM, *whole])
    assert answered(replicas)[1] == whole
    assert replicas.closed == 2


def test_pieces_need_not_end_where_events_do() -> None:
    text = b"".join([*chunks(4), DONE])
    broken = [text[at : at + 7] for at in range(0, len(text), 7)]
    replicas = Replicas([STREAM, *broken[:9], LOST], [STREAM, *broken[:14], LOST], [STREAM, text])
    assert b"".join(answered(replicas)[1]) == text


def test_what_an_answer_took_may_differ_and_pings_come_at_any_time() -> None:
    first = [STREAM, COMMENT_PING, event({"text": "a", "usage": None, "coterie": {"hits": 1}}), NAMED_PING, LOST]
    second = [
        STREAM,
        event({"text": "a", "usage": None, "coterie": {"hits": 2}}),
        COMMENT_PING,
        event({"text": "b"}),
        DONE,
    ]
    assert answered(Replicas(first, second))[1] == [first[2], second[3], DONE]


def test_how_far_a_prompt_is_read_is_told_and_not_compared() -> None:
    progress = [event({"text": "", "prompt_progress": {"processed": n}}) for n in (1, 2)]
    first, second = [STREAM, *progress, *chunks(1), LOST], [STREAM, progress[1], *chunks(2), DONE]
    assert answered(Replicas(first, second))[1] == [*progress, *chunks(2), DONE]


def test_events_are_numbered_anew_where_another_replica_tells_of_more() -> None:
    """Of ``/v1/responses``, whose clients count on it."""

    def said(number: int, **more: Any) -> bytes:
        return event({"type": "t", "sequence_number": number, **more}, "t")

    first = [STREAM, said(0), said(1, prompt_progress={"processed": 1}), said(2, delta="a"), LOST]
    second = [STREAM, said(0), said(1, delta="a"), said(2, delta="b"), said(3, prompt_progress={}), said(4), DONE]
    third = [STREAM, said(0), said(1, delta="a"), said(2, delta="b"), said(3), DONE]
    told = [said(0), said(1, prompt_progress={"processed": 1}), said(2, delta="a"), said(3, delta="b")]
    whole = [*told, said(4, prompt_progress={}), said(5), DONE]
    assert answered(Replicas(first, second))[1] == whole
    assert answered(Replicas(first, [*second[:4], LOST], third))[1] == [*told, said(4), DONE]


def test_what_a_model_writes_may_look_like_an_event() -> None:
    def said(took: int) -> bytes:
        return event({"text": "data: {}", "usage": {"prompt_tokens": took}})

    replicas = Replicas([STREAM, said(1), LOST], [STREAM, said(2), *chunks(1), DONE])
    assert answered(replicas)[1] == [said(1), *chunks(1), DONE]


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_another_answer_is_not_mixed_in(dialect: str) -> None:
    replicas = Replicas([STREAM, *chunks(3), LOST], [STREAM, event({"text": "other"}), *chunks(3)[1:], DONE])
    events = answered(replicas, dialect)[1]
    assert events[:3] == chunks(3)
    assert b"replica" in events[3]
    assert (b'"code": "replica_lost"' in events[3]) == (dialect == "openai")
    assert events[3].startswith(b"event: error\n") == (dialect == "anthropic")
    assert events[4:] == ([DONE] if dialect == "openai" else [])


def test_a_whole_answer_is_made_again() -> None:
    replicas = Replicas([LOST], [WHOLE, b'{"half', LOST], [WHOLE, b'{"whole": ', b"1}"])
    answer, body = answered(replicas)
    assert json.loads(body[0]) == {"whole": 1}
    assert answer.head.shown == [(b"content-type", b"application/json")]


def test_a_request_that_ends_replicas_is_given_up() -> None:
    replicas = Replicas(*([LOST] for _ in range(9)))
    with pytest.raises(Refusal, match="was lost") as caught:
        answered(replicas)
    assert (caught.value.status, caught.value.code) == (502, "replica_lost")
    assert len(replicas.scripts) == 9 - TRIES


def test_a_refusal_of_the_next_replica_ends_a_stream() -> None:
    events = answered(Replicas([STREAM, *chunks(2), LOST], [Head(429, ()), b"{}"]))[1]
    assert events[:2] == chunks(2)
    assert b"replica_lost" in events[2]


def test_a_client_that_leaves_is_not_answered() -> None:
    async def run() -> Replicas:
        replicas = Replicas([HANG])

        async def leaves() -> dict[str, str]:
            await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        answer = Answer(replicas.ask, ASK, "openai", cut=asyncio.Event())
        assert not await answer.begin(leaves)  # type: ignore[arg-type]
        return replicas

    assert asyncio.run(run()).closed == 1


def test_a_stream_is_cut_with_a_word() -> None:
    async def run() -> list[bytes]:
        cut = asyncio.Event()
        answer = Answer(Replicas([STREAM, *chunks(1), HANG]).ask, ASK, "openai", cut=cut)
        assert await answer.begin(_stays)  # type: ignore[arg-type]
        events = []
        async for one in answer.events():
            events.append(one)
            cut.set()
        return events

    events = asyncio.run(run())
    assert events[0] == chunks(1)[0]
    assert b"shutting_down" in events[1]
    assert events[2] == DONE


def test_names_follow_from_a_word() -> None:
    one, same, other = ASK.identity, ASK.identity, Identity.new()
    assert [one.new_id(), one.new_id()] == [same.new_id(), same.new_id()]
    assert one.new_id() != other.new_id()
    assert one.seed == same.seed is not None
    assert other.seed is None


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        (b'{"prompt": "The fox", "max_tokens": 3}', "The fox"),
        (b'{"max_tokens": 3, "messages": [{"role": "user", "content": "a"}], "system": "s"}',
         's\n[{"content": "a", "role": "user"}]'),
        (b"[" * 100_000, ""),
        (b"\xff\x00", ""),
        (b"[1]", ""),
        (b"", ""),
    ],
)  # fmt: skip
def test_requests_that_begin_alike_are_known_by_their_prompt(body: bytes, prompt: str) -> None:
    assert prompt_of(body) == prompt

"""Pictures and sounds are decoded while others are answered, and nobody's answer is another one for that."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import coterie
from coterie.errors import InputError, RequestCancelledError
from coterie.generation import media_features
from coterie.generation.asked import Prompt, preparing
from coterie.generation.completion import Completion, complete
from coterie.generation.decoding import DECODING
from coterie.generation.engine import Engine
from coterie.generation.inputs import build_inputs
from coterie.generation.opened import OpenModel
from coterie.generation.sampling import Sampling
from coterie.hf.generation_steps import may_come_in_pieces, prepare_in_pieces
from coterie.spec import Event, ExpertsSelected, StepStarted

from .conftest import BUNDLED, DATA

WISHES = Sampling(max_new_tokens=4, temperature=0)
TEXT = "And it came to pass"


@pytest.fixture(scope="module")
def opened() -> Iterator[OpenModel]:
    model = coterie.load(BUNDLED, memory="8GiB", max_context=1024)
    yield OpenModel.of(model)
    model.coterie.close()


@pytest.fixture
def engine(opened: OpenModel) -> Iterator[Engine]:
    with Engine(opened) as made:
        yield made


def asked(*media: Path | str) -> list[dict[str, Any]]:
    parts = [{"type": "audio" if str(one).endswith("wav") else "image", "path": str(one)} for one in media]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": TEXT}]}]


PICTURES = asked(DATA / "sandal.png", DATA / "ankle-boot.png", DATA / "go.wav")


def alone(opened: OpenModel, messages: list[dict[str, Any]]) -> Completion:
    inputs = coterie.chat_inputs(opened.processors, messages)
    return complete(opened.model, opened.processors.tokenizer, inputs, WISHES, piece=512)


class Decoder:
    """Holds whoever decodes a picture, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.released = threading.Event(), threading.Event()
        self.calls: list[str] = []
        read = media_features.read_picture

        def held(*args: Any, **options: Any) -> Image.Image:
            self.calls.append(threading.current_thread().name)
            self.begun.set()
            assert self.released.wait(30)
            return read(*args, **options)

        monkeypatch.setattr(media_features, "read_picture", held)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    made = Decoder(monkeypatch)
    yield made
    made.released.set()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_others_are_answered_while_pictures_are_decoded(opened: OpenModel, engine: Engine, decoder: Decoder) -> None:
    decoder.released.set()
    expected = alone(opened, PICTURES)
    decoder.released.clear()
    shown = engine.submit(PICTURES, WISHES)
    assert decoder.begun.wait(30)
    assert engine.submit(TEXT, WISHES).result(30).token_ids
    assert shown.phase == "prefill"
    assert engine.trouble is None
    decoder.released.set()
    assert shown.result(30).token_ids == expected.token_ids
    assert all(name.startswith("coterie-prepare") for name in decoder.calls[-2:])
    assert engine.governor.held == engine.governor.promised == 0


def test_who_is_given_up_has_nothing_more_decoded(engine: Engine, decoder: Decoder) -> None:
    shown, waiting = engine.submit(PICTURES, WISHES), engine.submit(PICTURES, WISHES)
    assert decoder.begun.wait(30)
    until(lambda: engine.running == 2)
    for ticket in (shown, waiting):
        ticket.cancel()
    assert engine.running == 0
    decoder.released.set()
    assert engine.submit(TEXT, WISHES).result(30).token_ids
    until(lambda: engine.governor.promised == 0)
    assert len(decoder.calls) == 1
    with pytest.raises(RequestCancelledError):
        shown.result(1)


def with_errors_of_its_own(opened: OpenModel) -> Prompt:
    """As a server has it, which tells its client in its own way what is wrong."""
    prompt = preparing(opened, PICTURES)()

    def inputs() -> Any:
        try:
            return prompt.inputs()
        except InputError as error:
            raise RuntimeError(error.message) from None

    return replace(prompt, inputs=inputs)


@pytest.mark.parametrize("own", [False, True], ids=["coterie's errors", "others' errors"])
@pytest.mark.parametrize("room", [0, 1000])
def test_without_room_beside_passes_it_is_done_between_two(
    opened: OpenModel, engine: Engine, decoder: Decoder, monkeypatch: pytest.MonkeyPatch, room: int, own: bool
) -> None:
    decoder.released.set()
    expected = alone(opened, PICTURES)
    monkeypatch.setattr(engine.governor, "set_aside", lambda whose: room)
    with DECODING:  # somebody else decodes
        shown = engine.submit(partial(with_errors_of_its_own, opened) if own else PICTURES, WISHES)
        until(lambda: engine.running == 1)
        assert engine.submit(TEXT, WISHES).result(30).token_ids
    assert shown.result(30).token_ids == expected.token_ids
    assert decoder.calls[-1] == "coterie-model"


def test_a_picture_is_not_made_smaller_for_others(
    opened: OpenModel, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.effect_noise((300, 300), 80).convert("RGB").save(tmp_path / "noise.jpg")
    messages = asked(tmp_path / "noise.jpg")
    expected = alone(opened, messages)
    # It would take it at a quarter of its size.
    monkeypatch.setattr(engine.governor, "set_aside", lambda whose: 100_000)
    assert engine.submit(messages, WISHES).result(30).token_ids == expected.token_ids


class Encoders:
    """An observer that notes the tokens of passes, and how many layers come to their experts."""

    def __init__(self) -> None:
        self.passes: list[list[int]] = []

    def on_event(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            self.passes.append([event.tokens, 0])
        elif isinstance(event, ExpertsSelected) and self.passes:
            self.passes[-1][1] += 1


def test_an_encoder_has_a_pass_of_its_own_between_which_others_get_tokens(opened: OpenModel, engine: Engine) -> None:
    expected = alone(opened, PICTURES)
    before = opened.runtime.stats().prefill_tokens
    beside = engine.submit(TEXT, Sampling(max_new_tokens=900, greedy=True, ignore_eos=True))
    until(lambda: beside.phase == "decode")
    opened.runtime.add_observer(seen := Encoders())
    shown = engine.submit(PICTURES, WISHES).result(60)
    opened.runtime.remove_observer(seen)
    beside.cancel()
    assert shown.token_ids == expected.token_ids
    kinds = ["encoder" if not layers else "tokens" if tokens > 1 else "answer" for tokens, layers in seen.passes]
    first = [kind for kind, _ in itertools.groupby(kinds[: kinds.index("tokens") + 1])]
    # Pictures together, sounds together, and the prompt's tokens; in between, tokens of the other. Older releases of
    # transformers find out where pictures are in one pass over all of the prompt.
    apart = may_come_in_pieces(prepare_in_pieces(opened.model, coterie.chat_inputs(opened.processors, PICTURES)))
    assert first[-5:] == (["encoder", "answer", "encoder", "answer", "tokens"] if apart else ["answer", "tokens"])
    prompts = shown.prompt_tokens + len(build_inputs(opened.processors, TEXT)["input_ids"][0])
    after = opened.runtime.stats().prefill_tokens
    assert sum(after.values()) - sum(before.values()) == prompts


def test_an_encoder_ends_at_its_next_layer(opened: OpenModel, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, released, layers = threading.Event(), threading.Event(), []
    visual = next(one for name, one in opened.model.named_modules() if name.endswith("visual"))

    def held(*_: object) -> None:
        layers.append(1)
        begun.set()
        assert released.wait(30)

    hooks = [block.register_forward_hook(held) for block in visual.blocks]
    try:
        shown = engine.submit(PICTURES, WISHES)
        assert begun.wait(30)
        shown.cancel()
        released.set()
        until(lambda: engine.running == 0)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(hooks) > 1
    assert len(layers) == 1
    assert engine.submit(PICTURES, WISHES).result(30).token_ids == alone(opened, PICTURES).token_ids


def test_what_cannot_be_decoded_is_its_own_fault(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    broken, fine = engine.submit(asked(tmp_path / "broken.png"), WISHES), engine.submit(PICTURES, WISHES)
    with pytest.raises(InputError):
        broken.result(30)
    assert fine.result(30).token_ids
    assert engine.governor.promised == 0


def test_the_end_does_not_wait_for_what_has_not_begun(opened: OpenModel, decoder: Decoder) -> None:
    with Engine(opened) as engine:
        tickets = [engine.submit(PICTURES, WISHES) for _ in range(2)]
        assert decoder.begun.wait(30)
        threading.Timer(0.05, decoder.released.set).start()
    assert len(decoder.calls) == 1
    assert all(ticket.phase == "over" for ticket in tickets)


def test_who_is_given_up_while_being_made_ready_leaves_at_once(opened: OpenModel) -> None:
    begun, released = threading.Event(), threading.Event()

    def slow() -> Any:
        begun.set()
        assert released.wait(30)
        raise InputError("Nobody wants to know.")

    with Engine(opened) as engine:
        leaver = engine.submit(slow)
        assert begun.wait(30)
        # A short one does not wait for a long one.
        assert engine.submit(TEXT, WISHES).result(30).token_ids
        assert engine.waiting == 1
        leaver.cancel()
        assert engine.waiting == 0
        released.set()
        assert engine.submit(TEXT, WISHES).result(30).token_ids
    with pytest.raises(RequestCancelledError):
        leaver.result(1)


def test_threads_share_a_tokenizer(opened: OpenModel) -> None:
    texts = [f"{TEXT} {number}" * (40 * number + 1) for number in range(6)]
    together, failed = [coterie.build_inputs(opened.processors, texts[:2])["input_ids"]], []
    expected = [coterie.build_inputs(opened.processors, text)["input_ids"].tolist() for text in texts]

    def work() -> None:
        try:
            for number, text in enumerate(texts):
                assert coterie.build_inputs(opened.processors, text)["input_ids"].tolist() == expected[number]
                several = coterie.build_inputs(opened.processors, texts[:2])["input_ids"]
                assert several.tolist() == together[0].tolist()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed

"""Parts that only some requests need leave memory and come back: same bits, counted, safe for threads and faults."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.engine.lending import Lending
from coterie.errors import ChecksumError, CoterieError, MemoryBudgetError, ReadError, UnsupportedError
from coterie.extraction import extract
from coterie.generation.decoding import decoding
from coterie.hf import parts as known_parts
from zoo import ZOO
from zoo.talkers import MIRRORED

MIB = 1 << 20
SPEAKING = {
    "return_audio": True,
    "thinker_max_new_tokens": 4,
    "thinker_do_sample": False,
    "talker_do_sample": False,
    "talker_max_new_tokens": 6,
}


@pytest.fixture(scope="module")
def whole(zoo_store: Callable[..., Path]) -> Path:
    return zoo_store("qwen3_omni", torch.bfloat16)


def seen(model: Any) -> dict[str, tuple[bool, int]]:
    return {path: (one.resident, one.reads) for path, one in model.coterie.stats().parts.items()}


def inputs_of(name: str = "qwen3_omni", *, image: bool = True, audio: bool = True) -> dict[str, torch.Tensor]:
    found = ZOO[name].inputs(length=40, image=image, audio=audio)
    return {name: one.to(torch.bfloat16) if one.is_floating_point() else one for name, one in found.items()}


def text_of(name: str = "qwen3_omni") -> dict[str, torch.Tensor]:
    return inputs_of(name, image=False, audio=False)


def spoken(model: Any, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)  # older releases draw codes, whatever they are asked for
    return model.generate(**inputs, **SPEAKING)


@pytest.mark.parametrize("kind", ["store", "checkpoint"])
def test_text_and_sound_are_stocks_to_the_bit(
    kind: str,
    whole: Path,
    zoo_checkpoint: Callable[..., Path],
    zoo_stock: Callable[..., Any],
    open_by_phase: Callable[..., Any],
) -> None:
    path = whole if kind == "store" else zoo_checkpoint("qwen3_omni", torch.bfloat16)
    stock = zoo_stock("qwen3_omni", torch.bfloat16)
    model = open_by_phase(path)
    assert set(seen(model).values()) == {(False, 0)}
    inputs = inputs_of(audio=False)  # of sounds, stock's configuration tells its talker too little
    expected = spoken(stock, **inputs)
    for turn in (1, 2):
        ids, sound = spoken(model, **inputs)
        assert torch.equal(ids, expected[0])
        assert torch.equal(sound, expected[1])
        assert seen(model) == {
            "thinker.audio_tower": (False, 0), "thinker.visual": (False, turn),
            "talker": (True, turn), "code2wav": (True, turn),
        }  # fmt: skip
    stats = model.coterie.stats()
    assert stats.parts["talker"].read_nbytes == 2 * stats.parts["talker"].nbytes > 0
    assert stats.to_dict()["parts"]["talker"]["read_s"] > 0
    # One who only writes never pays for encoders, and has what speaks leave.
    text = model.generate(**text_of(), thinker_max_new_tokens=3, return_audio=False)
    assert text is not None
    assert seen(model)["thinker.visual"] == (False, 2)
    assert seen(model)["talker"] == (False, 2)


def test_experts_have_what_parts_leave(whole: Path, open_by_phase: Callable[..., Any]) -> None:
    model = open_by_phase(whole)
    runtime = model.coterie
    plan, lending = runtime.plan, runtime.lending
    assert plan.by_phase
    assert set(plan.lent) == {"encoding", "speaking"}
    free = lending.free
    with runtime.speaking():
        spoken(model, **text_of())
        assert lending.free == free - plan.lent["speaking"]
        model.generate(**inputs_of(), thinker_max_new_tokens=2, return_audio=False)
        assert lending.free == free - plan.lent["speaking"]
    # An answer that follows and speaks, too, would find them; one that does not has them leave.
    assert lending.free == free - plan.lent["speaking"]
    model.generate(**inputs_of(), thinker_max_new_tokens=2, return_audio=False)
    assert lending.free == free
    assert all(not resident for resident, _ in seen(model).values())


def read_ahead() -> None:
    """Waits for what reads parts before they are called."""
    for thread in threading.enumerate():
        if thread.name == "coterie-parts":
            thread.join()


@pytest.mark.parametrize("how", ["held", "unheld", "no room"])
def test_what_speaks_is_read_while_the_prompt_is(how: str, whole: Path, open_by_phase: Callable[..., Any]) -> None:
    model = open_by_phase(whole)
    runtime = model.coterie
    if how == "no room":
        # For the parts of one use at a time.
        runtime.lending.lend("others", runtime.lending.free - runtime.plan.most_lent - 1024)
    with runtime.speaking() if how != "unheld" else nullcontext(), torch.no_grad():
        model.thinker(**text_of())
        read_ahead()
        expected = (True, 1) if how == "held" else (False, 0)
        assert {path: seen(model)[path] for path in ("talker", "code2wav")} == dict.fromkeys(
            ("talker", "code2wav"), expected
        )


def test_who_made_way_for_encoders_reads_on_when_they_have_done(
    whole: Path, open_by_phase: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_by_phase(whole)
    parts = model.coterie.parts
    began, bring_all = [], parts._bring_all

    def make_way(absent: list[Any]) -> None:
        began.append(len(absent))
        if len(began) > 1:
            bring_all(absent)

    monkeypatch.setattr(parts, "_bring_all", make_way)
    with model.coterie.speaking(), torch.no_grad():
        model.thinker(**inputs_of(audio=False))
        read_ahead()
        assert began == [2, 2]  # as the pass began, and as its encoder ended
        assert {path for path, (resident, _) in seen(model).items() if resident} == {"talker", "code2wav"}


def test_what_spoke_leaves_for_a_picture_that_is_decoded(whole: Path, open_by_phase: Callable[..., Any]) -> None:
    model = open_by_phase(whole)
    runtime = model.coterie
    with runtime.speaking():
        spoken(model, **text_of())
        runtime.plan.lent["encoding"] = runtime.lending.free + 1
        with runtime.lends_for_inputs():
            assert any(resident for resident, _ in seen(model).values())
    with runtime.lends_for_inputs():
        assert not any(resident for resident, _ in seen(model).values())


def test_schemes_and_packed_weights_come_back(
    tmp_path: Path, zoo_checkpoint: Callable[..., Path], open_model: Callable[..., Any], small_parts: None
) -> None:
    extract(zoo_checkpoint("qwen3_omni", torch.bfloat16), tmp_path / "store", scheme="int8", dense_scheme="int8")
    by_phase = open_model(tmp_path / "store", memory="4GiB", max_context=256)
    always = open_model(tmp_path / "store")
    inputs = inputs_of()
    expected = spoken(always, **inputs)
    assert all(resident is False for resident, _ in seen(by_phase).values())
    assert always.coterie.parts is None
    for _ in range(2):
        made = spoken(by_phase, **inputs)
        assert all(map(torch.equal, made, expected))


def test_another_models_encoder(
    zoo_store: Callable[..., Path], zoo_stock: Callable[..., Any], open_by_phase: Callable[..., Any]
) -> None:
    store, stock = zoo_store("qwen3_vl_moe", torch.bfloat16), zoo_stock("qwen3_vl_moe", torch.bfloat16)
    model = open_by_phase(store)
    inputs = inputs_of("qwen3_vl_moe", audio=False)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, stock(**inputs).logits)
    assert list(seen(model).values()) == [(False, 1)]
    model.generate(**text_of("qwen3_vl_moe"), max_new_tokens=2)
    assert list(seen(model).values()) == [(False, 1)]


def test_weights_that_are_away_are_an_error_and_no_numbers(whole: Path, open_by_phase: Callable[..., Any]) -> None:
    model = open_by_phase(whole)
    weight = model.thinker.get_submodule("model.visual" if hasattr(model.thinker.model, "visual") else "visual")
    matrix = next(one for one in weight.parameters() if one.dim() == 2)
    assert matrix.dtype == torch.bfloat16
    assert matrix.numel() > 0
    assert matrix.device == model.device
    with pytest.raises(UnsupportedError, match="not in memory now"):
        matrix + 1
    with pytest.raises(UnsupportedError, match="not in memory now"):
        torch.nn.functional.linear(torch.zeros(1, matrix.shape[1], dtype=torch.bfloat16), matrix)


def test_a_module_deep_within_a_part_brings_it_back(whole: Path, open_by_phase: Callable[..., Any]) -> None:
    model = open_by_phase(whole)
    projection = model.talker.text_projection.linear_fc1
    made = projection(torch.ones(1, projection.in_features, dtype=torch.bfloat16))
    assert seen(model)["talker"] == (True, 1)
    assert made.abs().sum() > 0


def test_rows_of_the_embedding(
    whole: Path, open_by_phase: Callable[..., Any], zoo_stock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = zoo_stock("qwen3_omni", torch.bfloat16).thinker.get_input_embeddings()
    model = open_by_phase(whole)
    rows, embedding = model.coterie.parts.rows, model.thinker.get_input_embeddings()
    assert embedding.weight.shape == table.weight.shape
    rows._most = 5
    for ids in ([[3, 4, 3]], [[4, 5], [6, 7]], [[3]], list(range(20)), [], [[99, 3, 99, 8]]):
        given = torch.tensor(ids, dtype=torch.int64)
        assert torch.equal(embedding(given), table(given))
    assert len(rows._slots) == 5
    with monkeypatch.context() as patch:
        patch.setattr(rows, "_read", lambda ids, into: pytest.fail(f"rows {ids} are read again"))
        embedding(torch.tensor([3, 8]))
    with pytest.raises(CoterieError, match="no token"):
        embedding(torch.tensor([table.num_embeddings]))


def test_a_damaged_byte_of_a_part_fails_the_request_and_the_next_one_can_go_on(
    tmp_path: Path, zoo_checkpoint: Callable[..., Path], open_by_phase: Callable[..., Any]
) -> None:
    store = tmp_path / "store"
    extract(zoo_checkpoint("qwen3_omni", torch.bfloat16), store)
    model = open_by_phase(store)
    part = next(one for one in model.coterie.parts._parts if one.path == "thinker.visual")
    info = part.tensors[0].info
    original = info.path.read_bytes()
    stamps = info.path.stat()
    inputs = inputs_of()
    capacity = model.coterie.cache.capacity

    def write(content: bytes) -> None:
        with info.path.open("r+b") as file:
            file.write(content)
        os.utime(info.path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))

    damaged = bytearray(original)
    damaged[info.offset] ^= 1
    write(bytes(damaged))
    with pytest.raises(ChecksumError, match="differs from its checksum"):
        spoken(model, **inputs)
    assert seen(model)["thinker.visual"] == (False, 0)
    assert model.coterie.cache.capacity == capacity
    # Text needs none of it.
    assert model.generate(**text_of(), thinker_max_new_tokens=2, return_audio=False) is not None
    write(original)
    expected = spoken(model, **inputs)
    assert seen(model)["thinker.visual"] == (False, 1)
    # A file that was written to is not read any more, and the error says so.
    os.utime(info.path)
    with pytest.raises((ReadError, CoterieError), match="cannot be read"):
        spoken(model, **inputs)
    os.utime(info.path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
    assert all(map(torch.equal, spoken(model, **inputs), expected))


@MIRRORED
def test_a_part_stays_while_another_thread_is_not_done_with_it(whole: Path, open_by_phase: Callable[..., Any]) -> None:
    model = open_by_phase(whole)
    expected = spoken(model, **inputs_of())
    others = [spoken(model, **text_of())]
    failed: list[BaseException] = []

    def speak(media: bool) -> None:
        try:
            for _ in range(2):
                made = spoken(model, **(inputs_of() if media else text_of()))
                wanted = expected if media else others[0]
                assert all(map(torch.equal, made, wanted))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=speak, args=(media,)) for media in (True, False, True)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failed == []


def test_what_is_held_gives_way_only_where_there_is_no_other_room(
    whole: Path, open_by_phase: Callable[..., Any]
) -> None:
    model = open_by_phase(whole)
    runtime = model.coterie
    inputs = inputs_of()
    expected = spoken(model, **inputs)
    with runtime.speaking():
        spoken(model, **inputs)
        before = seen(model)["talker"][1]
        model.generate(**inputs, thinker_max_new_tokens=2, return_audio=False)
        assert seen(model)["talker"] == (True, before)
        # Room for the parts of one use at a time.
        lending = runtime.lending
        taken = lending.free + sum(lending._lent.values()) - runtime.plan.most_lent - 1024
        lending.lend("others", taken - sum(n for who, n in lending._lent.items() if isinstance(who, str)))
        assert all(map(torch.equal, spoken(model, **inputs), expected))
        assert seen(model)["talker"][1] > before


def test_everything_stays_where_there_is_room(
    whole: Path, open_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_parts, "LEAST_PART", 1)
    model = open_model(whole, memory="4GiB", max_context=64)
    assert model.coterie.source.footprint.parts
    assert model.coterie.parts is None
    assert not model.coterie.plan.by_phase
    assert model.coterie.stats().parts == {}


class FakeCache:
    """A cache that lets go of what is in use when it is told to."""

    minimum = 10

    def __init__(self) -> None:
        self.capacity = 100
        self.late = 0

    def resize(self, capacity: int) -> bool:
        self.capacity = capacity
        self.late -= 1
        return self.late < 0


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache()


def test_lending(cache: FakeCache) -> None:
    lending = Lending(cache, spare=20)  # type: ignore[arg-type]
    lending.lend("a", 15)
    assert (cache.capacity, lending.free, lending.spare) == (100, 95, 5)
    lending.lend("b", 30)
    assert (cache.capacity, lending.free, lending.spare) == (75, 65, 0)
    cache.late = 3
    lending.lend("a", 40)
    assert cache.capacity == 50
    with pytest.raises(MemoryBudgetError, match="to lend"):
        lending.lend("c", 41)
    lending.lend("c", 40)
    assert cache.capacity == cache.minimum
    for who in "abc":
        lending.lend(who, 0)
    assert (cache.capacity, lending.free) == (100, 110)


def test_a_loan_that_experts_do_not_give_changes_nothing(cache: FakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.engine.lending._PATIENCE_S", 0.01)
    lending = Lending(cache)  # type: ignore[arg-type]
    cache.late = 1 << 30
    with pytest.raises(MemoryBudgetError, match="others hold them"):
        lending.lend("a", 50)
    assert lending.free == 90


def test_experts_lend_to_what_decodes_a_picture_what_its_encoder_takes_next(whole, open_by_phase) -> None:
    model = open_by_phase(whole)
    lent, before = model.coterie.plan.lent["encoding"], model.coterie.cache.capacity
    assert lent > 0
    free = model.coterie.lending.free
    with decoding():
        with decoding():  # of the sound of a video, for instance
            assert model.coterie.lending.free == free - min(lent, free)
        assert model.coterie.lending.free == free - min(lent, free)
    assert model.coterie.lending.free == free
    assert model.coterie.cache.capacity == before

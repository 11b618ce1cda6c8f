"""Beginnings of prompts from disk: the bits that were computed, for the same model and the same people alone."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.engine import bit_identity as bit_identity_module
from coterie.engine.bit_identity import bit_identity
from coterie.generation import prefix_copy
from coterie.generation.prefix_copy import PrefixCopy
from coterie.generation.prefix_folder import PrefixFolder
from coterie.generation.prefixes import Prefixes
from store.faults import FailingCalls, WatchedCalls
from zoo import ZOO

from .test_prefixes import PIECE, alone, answer, ids

MEMORY = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prefixes"


@pytest.fixture
def tiny(zoo_checkpoint, open_model) -> Any:
    return open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16), expert_memory="50%")


def started(model: Any, path: Path, *, memory: int = MEMORY, calls: WatchedCalls | None = None) -> Prefixes:
    """The beginnings of prompts of a process that has just begun."""
    folder = PrefixFolder(path, 1 << 30, calls=calls)
    return Prefixes(memory, piece=PIECE, copy=PrefixCopy(folder, bit_identity(model)))


def written(prefixes: Prefixes) -> int:
    assert prefixes.copy is not None
    assert prefixes.copy.flush(60)
    return prefixes.copy.counts.written


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_answers_are_those_from_scratch(name, path, zoo_checkpoint, open_model) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)
    model = open_model(zoo_checkpoint(name, torch.bfloat16), expert_memory="50%")
    before = started(model, path)
    answer(model, ids((1, 70)), before)
    assert written(before) == 4
    before.close()
    after = started(model, path)
    prompts = [ids((1, 70)), ids((1, 70)), ids((1, 40), (2, 20)), ids((3, 20))]
    got = [answer(model, prompt, after) for prompt in prompts]
    assert [one.reused for one in got] == [64, 64, 32, 0]
    assert got == [alone(model, prompt) for prompt in prompts]
    assert after.copy.counts.read == 4
    assert (after.counts.hits, after.counts.tokens) == (3, 160)
    after.close()


def test_what_memory_has_no_room_for_is_read(path, tiny) -> None:
    prefixes = started(tiny, path)
    answer(tiny, ids((1, 70)), prefixes)
    assert written(prefixes) == 4
    for limit in (prefixes.nbytes // 2, 0):
        prefixes.limit = 0
        prefixes.limit = limit
        got = answer(tiny, ids((1, 70)), prefixes)
        assert got.reused == 64
        assert got == alone(tiny, ids((1, 70)))
        assert prefixes.nbytes <= limit
    prefixes.close()


def test_who_has_another_salt_finds_nothing(path, tiny) -> None:
    before = started(tiny, path)
    for salt in ("", "anna", "anna-anna"):
        answer(tiny, ids((1, 50)), before, salt)
    assert written(before) == 9
    before.close()
    after = started(tiny, path)
    found = [answer(tiny, ids((1, 50)), after, salt).reused for salt in ("bert", "anna", "", "anna-anna")]
    assert found == [0, 48, 48, 48]
    # What was forgotten is not on disk either, and does not come back.
    after.clear("anna")
    assert answer(tiny, ids((1, 50)), after, "bert").reused == 48
    assert started(tiny, path).copy.read(after.copy.after(after.copy.begin("anna"), b""), 0, PIECE) is None
    again = started(tiny, path)
    assert [answer(tiny, ids((1, 50)), again, salt).reused for salt in ("anna", "anna-anna")] == [0, 48]
    again.clear()
    assert len(list(path.glob("*.safetensors"))) == 0
    for one in (after, again):
        one.close()


def test_the_disk_says_nothing_of_salts_and_tokens(path, tiny) -> None:
    prefixes = started(tiny, path)
    prompt = ids((1, 50))
    answer(tiny, prompt, prefixes, "a-key-that-is-secret")
    written(prefixes)
    prefixes.close()
    said = b"".join(file.name.encode() + file.read_bytes() for file in path.iterdir())
    assert b"a-key-that-is-secret" not in said
    assert prompt["input_ids"][0, :PIECE].numpy().tobytes() not in said


def test_another_model_precision_or_machine_is_another(path, tiny, zoo_checkpoint, open_model, monkeypatch) -> None:
    mine = bit_identity(tiny)
    assert bit_identity(tiny) == mine
    others = [
        open_model(zoo_checkpoint("qwen3_moe"), expert_memory="50%"),
        open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16), expert_memory="50%", experts_per_token=1),
        open_model(zoo_checkpoint("mixtral", torch.bfloat16), expert_memory="50%"),
    ]
    found = {bit_identity(model) for model in others}
    rotary = tiny.config.rope_parameters
    for patched, name, value in (
        (tiny.config, "rope_parameters", {**rotary, "rope_theta": 123.0}),
        (tiny.config, "_attn_implementation_internal", "eager"),
        (torch, "get_num_threads", lambda: 99),
        (torch, "__version__", "0.0"),
        (bit_identity_module, "installed", lambda: "0.0"),
        (bit_identity_module, "_processor", lambda: "another"),
        (bit_identity_module, "library", lambda: None),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(patched, name, value)
            found.add(bit_identity(tiny))
    assert len(found) == 10
    assert mine not in found
    before = started(tiny, path)
    answer(tiny, ids((1, 50)), before)
    assert written(before) == 3
    after = started(others[0], path)
    assert answer(others[0], ids((1, 50)), after).reused == 0
    for one in (before, after):
        one.close()


def test_a_checkpoint_that_was_written_to_is_another(zoo_checkpoint, open_model) -> None:
    checkpoint = zoo_checkpoint("qwen3_moe", torch.bfloat16)
    model = open_model(checkpoint, expert_memory="50%")
    before = bit_identity(model)
    weights = next(Path(checkpoint).glob("*.safetensors"))
    found = weights.stat()
    os.utime(weights, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert bit_identity(model) != before
    os.utime(weights, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert bit_identity(model) == before


def test_what_is_damaged_is_computed_with_one_warning(path, tiny, caplog) -> None:
    before = started(tiny, path)
    answer(tiny, ids((1, 50)), before)
    written(before)
    before.close()
    after = started(tiny, path)
    for file in path.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-100] ^= 1
        file.write_bytes(data)
    with caplog.at_level(logging.WARNING, "coterie"):
        got = answer(tiny, ids((1, 50)), after)
        assert got.reused == 0
        assert got == alone(tiny, ids((1, 50)))
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
    assert written(after) == 3
    after.close()
    again = started(tiny, path)
    assert answer(tiny, ids((1, 50)), again).reused == 48
    assert again.copy.damaged == 0
    again.close()


def test_a_full_disk_harms_no_request_and_copying_pauses(path, tiny, caplog, monkeypatch) -> None:
    monkeypatch.setattr(prefix_copy, "_PAUSES_S", (0.05, 0.05))
    started(tiny, path).close()
    calls = FailingCalls(10**9, errno.ENOSPC)
    prefixes = started(tiny, path, calls=calls)
    calls.at = calls.count + 1
    with caplog.at_level(logging.WARNING, "coterie"):
        got = answer(tiny, ids((1, 50)), prefixes)
        assert written(prefixes) < 3
    assert got == alone(tiny, ids((1, 50)))
    assert prefixes.copy.counts.failed == 1
    assert "no space is left" in caplog.text
    assert len(caplog.records) == 1
    assert not [one for one in path.iterdir() if one.name.endswith(".partial")]
    # It goes on by itself.
    threading.Event().wait(0.1)
    assert not prefixes.copy.paused
    assert answer(tiny, ids((1, 50)), prefixes).reused == 48
    written(prefixes)
    prefixes.close()
    after = started(tiny, path)
    assert answer(tiny, ids((1, 50)), after).reused == 48
    after.close()


def test_a_piece_that_cannot_be_read_is_computed(path, tiny, caplog, monkeypatch) -> None:
    before = started(tiny, path)
    answer(tiny, ids((1, 50)), before)
    written(before)
    before.close()
    after = started(tiny, path)

    def fails(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "coterie"):
        patch.setattr("coterie.generation.prefix_folder.open_regular", fails)
        got = [answer(tiny, ids((1, 50)), after, "") for _ in range(1)]
    assert [one.reused for one in got] == [0]
    assert got == [alone(tiny, ids((1, 50)))]
    assert after.copy.counts.failed >= 1
    after.close()


def test_nobody_waits_for_the_disk(path, tiny) -> None:
    held, reached = threading.Event(), threading.Event()

    class Slow(WatchedCalls):
        def before(self, index: int, name: str, arguments: tuple[Any, ...]) -> None:
            if name == "write" and threading.current_thread().name == "coterie-prefix-copy":
                reached.set()
                assert held.wait(60)

    prefixes = started(tiny, path, calls=Slow())
    got = answer(tiny, ids((1, 50)), prefixes)
    assert got == alone(tiny, ids((1, 50)))
    assert answer(tiny, ids((1, 50)), prefixes).reused == 48
    assert reached.wait(60)
    assert prefixes.copy.counts.written == 0
    held.set()
    assert written(prefixes) == 3
    prefixes.close()


def test_what_left_memory_before_its_turn_is_not_written(path, tiny) -> None:
    held = threading.Event()

    class Slow(WatchedCalls):
        def before(self, index: int, name: str, arguments: tuple[Any, ...]) -> None:
            if name == "write" and threading.current_thread().name == "coterie-prefix-copy":
                assert held.wait(60)

    prefixes = started(tiny, path, calls=Slow())
    answer(tiny, ids((1, 50)), prefixes)
    prefixes.limit = 0
    held.set()
    assert written(prefixes) <= 1
    assert prefixes.copy.counts.skipped >= 2
    prefixes.close()

"""Logits of the full model on disk: the same to the last bit, or an error that says what is wrong."""

from __future__ import annotations

import gc
import json
import weakref
import zlib
from pathlib import Path

import pytest
import torch

from coterie.errors import InputError, UsageError
from coterie.evaluate import EvaluationProgress, evaluate, measuring, reference, tasks
from coterie.evaluate.reference import Reference

HEADER = {"model": "00ff", "texts": ["ab"], "context": 8}


def logits(dtype: torch.dtype, rows: int = 7, width: int = 33) -> torch.Tensor:
    found = (3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(1))).to(dtype)
    found[0, :4] = torch.tensor([float("-inf"), -0.0, 0.0, 65504.0])
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("slice_rows", [1, 3, 100])
def test_what_was_kept_is_read_back_to_the_last_bit(dtype, slice_rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reference, "_SLICE_NBYTES", slice_rows * 33 * dtype.itemsize)
    kept, given = Reference(tmp_path / "logits", HEADER), logits(dtype)
    assert not kept.has_logits((0, 3))
    kept.keep_logits((0, 3), given)
    again = Reference(tmp_path / "logits", HEADER)
    assert again.has_logits((0, 3))
    found, reads = again.logits((0, 3), 7)
    assert reads is None
    assert found.dtype is dtype
    kind = torch.int16 if dtype.itemsize == 2 else torch.int32
    assert torch.equal(found.view(kind), given.view(kind))  # negative zeros, too


def test_it_is_smaller_than_the_logits(tmp_path) -> None:
    given = logits(torch.bfloat16, rows=64, width=1024)
    kept = Reference(tmp_path / "logits", HEADER)
    kept.keep_logits((0, 0), given)
    assert (tmp_path / "logits" / "00000-00000.logits").stat().st_size < 0.8 * given.numel() * 2


def test_logits_of_something_else_are_refused_and_left_alone(tmp_path) -> None:
    Reference(tmp_path / "logits", HEADER).keep_logits((0, 0), logits(torch.bfloat16))
    before = {path.name: path.read_bytes() for path in (tmp_path / "logits").iterdir()}
    with pytest.raises(UsageError, match="the logits of something else: context, model differ"):
        Reference(tmp_path / "logits", HEADER | {"model": "11", "context": 9})
    assert {path.name: path.read_bytes() for path in (tmp_path / "logits").iterdir()} == before


@pytest.mark.parametrize("content", [b"a diary", b"[1]", b""])
def test_another_directory_is_refused_and_left_alone(content, tmp_path) -> None:
    (tmp_path / "reference.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"no directory of logits|everything differ"):
        Reference(tmp_path, HEADER)
    (tmp_path / "reference.json").unlink()
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(UsageError, match="no directory of logits"):
        Reference(tmp_path, HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_directory_whose_first_write_was_killed_is_begun_anew(tmp_path) -> None:
    (tmp_path / ".reference.json.00ff00ff.partial").write_bytes(b'{"mod')
    kept, given = Reference(tmp_path, HEADER), logits(torch.bfloat16)
    kept.keep_logits((0, 0), given)
    assert torch.equal(Reference(tmp_path, HEADER).logits((0, 0), 7)[0], given)


@pytest.mark.parametrize(
    "content",
    [b"", b"no JSON", b'{"ids": [1, 2]}', b'{"ids": ["a"], "checksum": ""}', b'{"ids": [1], "checksum": "ff"}'],
)
def test_a_damaged_continuation_is_said_by_name(content, tmp_path) -> None:
    kept = Reference(tmp_path, HEADER)
    assert not kept.has_continuation("ab12")
    kept.keep_continuation("ab12", [7, 8, 0])
    assert kept.has_continuation("ab12")
    assert kept.continuation("ab12", 3) == (7, 8, 0)
    with pytest.raises(InputError, match="more than 2"):
        kept.continuation("ab12", 2)
    (tmp_path / "ab12.continuation").write_bytes(content)
    with pytest.raises(InputError, match=r"ab12\.continuation is damaged"):
        kept.continuation("ab12", 3)


def damaged(content: bytes) -> dict[str, bytes]:
    """The content of a file, each time with something wrong."""
    line, _, rest = content.partition(b"\n")
    header = json.loads(line)

    def headed(**changes: object) -> bytes:
        return json.dumps(header | changes).encode() + b"\n" + rest

    bomb = zlib.compress(bytes(1 << 20))
    return {
        "a flipped bit": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        "another checksum": headed(checksum="0" * 32),
        "half of it": content[: len(content) // 2],
        "more at its end": content + b"x",
        "nothing": b"",
        "no JSON": b"x" * 40 + b"\n" + rest,
        "no dtype": headed(dtype="int8"),
        "another shape": headed(shape=[8, 33]),
        "a shape that is none": headed(shape=[7]),
        "a huge shape": headed(shape=[7, 1 << 60]),
        "no rows": headed(rows=0),
        "a slice that is far too long": line + b"\n" + (1 << 62).to_bytes(8, "little") + rest[8:],
        "a slice that holds more": line + b"\n" + len(bomb).to_bytes(8, "little") + bomb,
    }


@pytest.mark.parametrize("what", sorted(damaged(b'{"a": 1}\n' + bytes(64))))
def test_what_is_damaged_is_said_by_name(what, tmp_path) -> None:
    kept = Reference(tmp_path / "logits", HEADER)
    kept.keep_logits((1, 2), logits(torch.bfloat16))
    path = tmp_path / "logits" / "00001-00002.logits"
    path.write_bytes(damaged(path.read_bytes())[what])
    with pytest.raises(InputError, match=r"00001-00002\.logits is damaged") as caught:
        kept.logits((1, 2), 7)
    assert "Remove it" in str(caught.value)


def test_a_model_is_its_own_reference_alone_and_once(readable: Path, partial: Path, words, tmp_path: Path) -> None:
    paths, options = [words(90), words(40, seed=1)], {"context": 32, "expert_memory": "50%"}
    where = tmp_path / "logits"
    told: list[EvaluationProgress] = []
    own = evaluate(readable, paths, against=readable, reference=where, progress=told.append, **options)
    assert own.total.comparison.identical == own.total.tokens == 128
    assert own.total.comparison.kld_max == 0.0
    assert (told[0].done, told[-1].done, told[-1].total) == (0, 256, 256)  # by both models
    beside = evaluate(partial, paths, against=readable, missing="mask", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring.Run, "_keep", lambda *_: pytest.fail("it is there"))
        assert evaluate(partial, paths, against=readable, missing="mask", reference=where, **options) == beside
    with pytest.raises(UsageError, match="something else: texts differ"):
        evaluate(readable, paths[:1], against=readable, reference=where, **options)
    with pytest.raises(UsageError, match="something else: context, stride differ"):
        evaluate(readable, paths, against=readable, reference=where, context=16, expert_memory="50%")
    with pytest.raises(UsageError, match="none is named"):
        evaluate(readable, paths, reference=where, **options)


def test_an_interrupted_reference_goes_on_where_it_was(readable: Path, words, tmp_path: Path) -> None:
    paths, computed = [words(100)], []
    options = {"against": readable, "context": 16, "expert_memory": "100%", "reference": tmp_path / "logits"}
    original = tasks.WindowTask.piece

    def interrupted(task: tasks.WindowTask) -> tasks.WindowPiece:
        computed.append(task.window.first)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return original(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.WindowTask, "piece", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(readable, paths, **options)
        found = evaluate(readable, paths, **options)
    windows = [1, 17, 33, 49, 65, 81, 97]
    assert computed == [*windows[:3], *windows[2:], *windows]
    assert found.total.comparison.kld_max == 0.0


def test_what_is_left_out_is_compared_with_what_was_computed_token_by_token(readable, words, tmp_path) -> None:
    paths = [words(40)]
    options = {"against": readable, "context": 32, "expert_memory": "50%", "reference": tmp_path / "logits"}
    none = evaluate(readable, paths, drop_cold=1e-9, **options)
    assert none.total.comparison.identical == none.total.tokens
    assert (none.reads.tokens, none.full_reads.tokens, none.full_reads.left_out) == (39, 39, 0)
    # It is told again of what was read when the logits were computed.
    again = evaluate(readable, paths, drop_cold=1.0, **options)
    assert again.full_reads == none.full_reads
    assert again.reads.left_out > 0
    with pytest.raises(UsageError, match="something else: in_steps differ"):
        evaluate(readable, paths, **options)


def test_the_full_model_is_gone_when_the_other_is_opened(readable: Path, words, tmp_path: Path, monkeypatch) -> None:
    from coterie.engine import opening

    built: list[weakref.ref] = []
    alive: list[int] = []
    plan_for, build_model = opening.plan_for, opening.build_model

    def watched_plan(*arguments, loaded, **options):
        if not loaded:
            alive.append(sum(model() is not None for model in built))
        return plan_for(*arguments, loaded=loaded, **options)

    def watched_build(*arguments):
        model = build_model(*arguments)
        built.append(weakref.ref(model))
        return model

    monkeypatch.setattr(opening, "plan_for", watched_plan)
    monkeypatch.setattr(opening, "build_model", watched_build)
    options = {"against": readable, "context": 16, "reference": tmp_path / "kept"}
    gc.disable()
    try:
        evaluate(readable, [words(20)], memory="8GiB", **options)
    finally:
        gc.enable()
    assert len(built) == 2
    assert alive == [0, 0]

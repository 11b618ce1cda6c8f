"""Traces from files: both forms read, and what is wrong with a damaged one."""

import json
import os

import numpy as np
import pytest

from coterie.errors import InputError, UsageError
from coterie.eviction import read_trace
from coterie.spec import ExpertKey


def plain(path, **changed):
    arrays = {"expert_ids": np.array([[[0, 1], [2, 3]], [[1, 2], [3, 0]]], np.uint8), "sequence_lengths": [1, 1],
              "num_experts": 4, "model": "tiny"} | changed  # fmt: skip
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def recorded(path, **changed):
    """Two prompt tokens in one step, then one token; the second layer was not run for the second prompt token."""
    arrays = {
        "schema_version": 1, "model": "tiny", "identity": "i", "components": ["text"],
        "text.expert_ids": np.array([[[0, 1], [5, 2]], [[1, 3], [65535, 65535]], [[2, 0], [5, 4]]], np.uint16),
        "text.step": np.array([0, 0, 1]), "text.phase": np.array([0, 0, 1], np.uint8),
        "text.layers": np.array([1, 3]), "text.banks": ["mlp", "mlp"], "text.num_experts": np.array([4, 6]),
    } | changed  # fmt: skip
    np.savez(path, **arrays)
    return path


def key(layer, expert):
    return ExpertKey("text", layer, "mlp", expert)


def test_a_plain_trace_is_all_decoding(tmp_path):
    trace = read_trace(plain(tmp_path / "t.npz"))
    assert [(g.step, g.layer, [k.expert for k in g.keys], g.prefill) for g in trace.groups] == [
        (0, 0, [0, 1], False), (0, 1, [2, 3], False), (1, 0, [1, 2], False), (1, 1, [3, 0], False),
    ]  # fmt: skip
    assert (trace.model, trace.tokens, trace.layers, trace.experts, trace.working_set) == ("tiny", 2, 2, 8, 4)


def test_a_recorded_trace_leaves_prefills_out_unless_asked(tmp_path):
    decoding = read_trace(recorded(tmp_path / "t.npz"))
    assert [g.keys for g in decoding.groups] == [(key(1, 2), key(1, 0)), (key(3, 5), key(3, 4))]
    assert (decoding.tokens, decoding.experts, decoding.experts_known) == (1, 10, True)
    everything = read_trace(tmp_path / "t.npz", phase="all")
    assert [(g.prefill, g.keys) for g in everything.groups[:2]] == [
        (True, (key(1, 0), key(1, 1), key(1, 3))),
        (True, (key(3, 5), key(3, 2))),
    ]
    assert everything.tokens == 3


def test_jsonl_is_read_alike_but_does_not_say_how_many_experts(tmp_path):
    lines = [{"schema_version": 1, "model": "tiny", "identity": "i"}]
    rows = [("prefill", 0, [[0, 1], [5, 2]]), ("prefill", 0, [[1, 3], [65535, 65535]]), ("decode", 1, [[2, 0], [5, 4]])]
    for token, (phase, step, ids) in enumerate(rows):
        for layer, chosen in zip((1, 3), ids, strict=True):
            lines.append({"component": "text", "layer": layer, "bank": "mlp", "step": step, "token": token,
                          "phase": phase, "expert_ids": chosen, "weights": [0.5, 0.5]})  # fmt: skip
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trace = read_trace(tmp_path / "t.jsonl", phase="all")
    assert trace.groups == read_trace(recorded(tmp_path / "t.npz"), phase="all").groups
    assert (trace.experts, trace.experts_known) == (10, False)


@pytest.mark.parametrize(
    ("make", "changed", "message"),
    [
        (plain, {"sequence_lengths": [1, 2]}, "sum up to 3, but there are 2 tokens"),
        (plain, {"num_experts": 3}, "names expert 3, but the layer has 3"),
        (plain, {"expert_ids": None}, "expert_ids.*"),
        (plain, {"expert_ids": np.zeros((2, 2), np.uint8)}, r"instead of \[tokens, layers, k\]"),
        (plain, {"expert_ids": np.zeros((2, 2, 1))}, "whole numbers were expected"),
        (recorded, {"schema_version": 2}, "version 2; this Coterie reads version 1"),
        (recorded, {"text.step": np.array([0, 1])}, r"text.step has the shape \[2\]"),
        (recorded, {"text.num_experts": np.array([4, 5])}, "layer 3 of text names expert 5"),
        (recorded, {"text.num_experts": np.array([4])}, "text.num_experts"),
    ],
)
def test_contradictions_are_named(make, changed, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_trace(make(tmp_path / "t.npz", **changed))


def test_damaged_files(tmp_path):
    whole = recorded(tmp_path / "t.npz").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged"):
            read_trace(tmp_path / "cut.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.jsonl").write_text("[1]\n")
    for name in ("array.npy", "text.jsonl"):
        with pytest.raises(InputError, match="not a routing trace"):
            read_trace(tmp_path / name)
    with pytest.raises(InputError, match="There is no trace"):
        read_trace(tmp_path / "absent.npz")


def test_a_trace_without_decoding(tmp_path):
    with pytest.raises(UsageError, match="holds no decoding"):
        read_trace(recorded(tmp_path / "t.npz", **{"text.phase": np.zeros(3, np.uint8)}))


@pytest.mark.parametrize(
    "content",
    [b"", b"not a trace", b"PK\x03\x04", b"\x80\x04K\x01.", b"\x93NUMPY\x01\x00" + b"\xff" * 50],
)
@pytest.mark.parametrize("name", ["t.npz", "t.jsonl", "t.json"])
def test_files_of_anything_are_refused_in_our_words(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert "pickle" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_objects_that_numpy_would_unpickle_are_refused_in_our_words(tmp_path):
    path = plain(tmp_path / "t.npz", expert_ids=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="its content is not what a trace holds") as caught:
        read_trace(path)
    assert "pickle" not in str(caught.value)


STRANGE = [
    np.array(3), np.array([]), np.array([1.5]), np.array(["x"]), np.array([-1, 2**62]), np.zeros((3, 2, 2, 2), int),
    np.array([True, False, True]), np.array([b"x"]), np.array([1j]), np.array([2**64 - 1], np.uint64),
    np.array([[1], [2]]),
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["schema_version", "model", "identity", "components", "text.expert_ids", "text.step", "text.phase", "text.layers",
     "text.banks", "text.num_experts"],
)  # fmt: skip
def test_arrays_of_anything_are_refused(tmp_path, name):
    for value in STRANGE:
        path = recorded(tmp_path / "t.npz", **{name: value})
        try:
            read_trace(path, phase="all")
        except (InputError, UsageError):
            continue
        assert name in ("schema_version", "model", "identity", "text.phase", "text.step")


LINE = {"component": "text", "token": 0, "layer": 0, "bank": "mlp", "step": 0, "phase": "decode", "expert_ids": [0, 1]}


@pytest.mark.parametrize("name", list(LINE))
def test_lines_of_anything_are_refused(tmp_path, name):
    head = json.dumps({"schema_version": 1, "model": "m", "identity": "i"})
    path = tmp_path / "t.jsonl"
    for value in (None, "x", -1, 2**70, 1.5, [], {}, [[1]], [-1, 70000], [2**70], ["x"], "\ud800", True, [None]):
        path.write_text(head + "\n" + json.dumps(LINE | {name: value}) + "\n")
        try:
            read_trace(path, phase="all")
        except (InputError, UsageError):
            continue
        assert name in ("component", "bank", "phase", "step", "layer", "token")
    for line in ("[" * 100_000, "9" * 5000, "{}", "[]", "3", "x" * (2 << 20)):
        path.write_text(head + "\n" + line + "\n")
        with pytest.raises(InputError):
            read_trace(path)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.npz")
    os.mkfifo(tmp_path / "t.jsonl")
    for path in (tmp_path / "t.npz", tmp_path / "t.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_trace(path)

"""Traces from files: both forms read, and what is wrong with a damaged one."""

import json

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

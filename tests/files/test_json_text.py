"""JSON of strangers is read strictly, within limits that hold before anything is built of it."""

from __future__ import annotations

import math
import os

import pytest

from coterie.errors import CheckpointFileError, LoadError
from coterie.files.json_text import JsonLimits, JsonProblem, parse_json, read_json_object

SMALL = JsonLimits(nbytes=1000, depth=3, values=20, digits=5, floats=False)


def test_reads_what_configurations_contain():
    value = parse_json(b'{"a": [1, -2.5, true, null, "x"], "b": {"c": Infinity}}')
    assert value == {"a": [1, -2.5, True, None, "x"], "b": {"c": math.inf}}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "'a' occurs twice"),
        (b"[[[[]]]]", "deeper than 3"),
        (b'["[[[[[", [[[]]]]', "deeper than 3"),
        (b"123456", "more than 5 characters"),
        (b"1.5", "not an integer"),
        (b"NaN", "not an integer"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b"{", "not JSON"),
        (b"[" + b"0," * 30 + b"0]", "more than the limit of 20 values"),
        (b" " * 1001, "more than the limit of 1,000 bytes"),
    ],
)
def test_refuses_what_is_not_json_or_too_much(data, said):
    with pytest.raises(JsonProblem, match=said):
        parse_json(data, SMALL)


@pytest.mark.timeout(20)
def test_a_duplicate_among_many_keys_is_found_in_linear_time():
    names = ",".join(f'"k{i}":0' for i in range(300_000))
    with pytest.raises(JsonProblem, match="'k7' occurs twice"):
        parse_json(f'{{{names},"k7":0}}'.encode())


def test_a_file_must_be_one_object(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert read_json_object(path) == {"a": 1}
    path.write_text("[]")
    with pytest.raises(LoadError, match=r"config\.json is not a JSON object"):
        read_json_object(path, error=LoadError)
    path.write_text("{")
    with pytest.raises(CheckpointFileError, match="is not valid JSON") as caught:
        read_json_object(path)
    assert caught.value.path == path
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "none.json")


@pytest.mark.timeout(20)
def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointFileError, match="a FIFO"):
        read_json_object(tmp_path / "config.json")

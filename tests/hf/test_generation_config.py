import json
import os
from pathlib import Path

import pytest

from coterie.errors import LoadError
from coterie.hf.generation_config import _CHECKS, FILE, read_generation_config

WRONG = ["x", "", [], {}, [[]], [1.5], ["x"], {"x": []}, True, -7, 1.5, 10**19, -1e300, [None], [[1], [-2]]]


def write(directory: Path, **values: object) -> None:
    (directory / FILE).write_text(json.dumps(values))


def test_there_may_be_none(tmp_path) -> None:
    assert read_generation_config(tmp_path) is None


def test_values_are_those_of_the_file_and_null_is_nothing(tmp_path) -> None:
    write(tmp_path, do_sample=True, top_p=0.8, eos_token_id=[1, 2], temperature=None, something_else={"a": 1})
    made = read_generation_config(tmp_path)
    assert (made.do_sample, made.top_p, made.eos_token_id, made.temperature) == (True, 0.8, [1, 2], None)
    assert made.something_else == {"a": 1}


def test_what_means_something_in_other_tools_is_put_right(tmp_path) -> None:
    write(tmp_path, do_sample=True, temperature=0, top_k=-1, repetition_penalty=2)
    made = read_generation_config(tmp_path)
    assert (made.do_sample, made.temperature, made.top_k, made.repetition_penalty) == (False, None, 0, 2.0)
    assert isinstance(made.repetition_penalty, float)


@pytest.mark.parametrize("key", sorted(_CHECKS))
def test_a_value_of_a_wrong_type_names_file_and_key(tmp_path, key) -> None:
    refused = 0
    for value in WRONG:
        write(tmp_path, **{key: value})
        if not _CHECKS[key][0](value):
            refused += 1
            with pytest.raises(LoadError, match=key) as caught:
                read_generation_config(tmp_path)
            assert caught.value.path == tmp_path / FILE
    assert refused >= 8


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"a": 1, "a": 2}', "[" * 100_000, '{"top_k": ' + "9" * 5000 + "}"]
)
def test_a_file_that_is_no_json_object(tmp_path, text) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(LoadError, match=FILE):
        read_generation_config(tmp_path)


def test_only_a_regular_file_is_read(tmp_path) -> None:
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(LoadError, match="FIFO"):
        read_generation_config(tmp_path)

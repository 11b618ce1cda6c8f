import json
import shutil
from pathlib import Path

import pytest
import torch

import coterie
from coterie.errors import LoadError
from coterie.hf.configs import load_config, resolve_model
from coterie.hf.skeleton import build_skeleton
from coterie.hf.tokenizer import embedding_rows, load_tokenizer, tokenizer_file


@pytest.fixture
def bundled() -> Path:
    return Path(coterie.__file__).parent / "bundled"


@pytest.fixture
def directory(bundled: Path, tmp_path: Path) -> Path:
    """A copy of the bundled model's directory without its weights."""
    for file in bundled.glob("*.json"):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path


def test_a_tokenizer_that_fits(bundled):
    tokenizer = load_tokenizer(bundled, embedding_rows=8192)
    assert tokenizer.decode(tokenizer("And it came to pass")["input_ids"]) == "And it came to pass"


def test_more_rows_than_tokens_are_padding(bundled):
    assert len(load_tokenizer(bundled, embedding_rows=8320)) == 8192


def test_a_token_without_a_row_names_both_numbers(bundled):
    with pytest.raises(LoadError, match=r"id 8191, but the embedding has 8191 rows") as caught:
        load_tokenizer(bundled, embedding_rows=8191)
    assert (caught.value.token_id, caught.value.embedding_rows) == (8191, 8191)


def test_an_added_token_without_a_row(directory):
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 8192, "content": "<|extra|>"})
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(LoadError, match=r"'<\|extra\|>' has id 8192, but the embedding has 8192 rows"):
        load_tokenizer(directory, embedding_rows=8192)


def test_no_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    with pytest.raises(LoadError, match=r"holds no tokenizer.*Copy tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer(directory):
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(LoadError, match="cannot be used"):
        load_tokenizer(directory)


def test_no_padding_token_pads_with_the_end_of_text(directory):
    file = directory / "tokenizer_config.json"
    content = json.loads(file.read_text())
    del content["pad_token"]
    file.write_text(json.dumps(content))
    assert load_tokenizer(directory).pad_token == "<|endoftext|>"


def test_the_file_that_a_tokenizer_is_in(directory, tmp_path):
    assert tokenizer_file(directory) == "tokenizer.json"
    (directory / "tokenizer.json").unlink()
    assert tokenizer_file(directory) is None
    (directory / "qwen.tiktoken").touch()
    assert tokenizer_file(directory) == "qwen.tiktoken"


@pytest.mark.parametrize(("component", "rows"), [(None, 128), ("thinker", 128), ("talker", None)])
def test_rows_that_text_indexes(component, rows, zoo_checkpoint):
    """A talker's embedding has rows for codes of speech: no tokenizer of text has anything to do with it."""
    config = load_config(zoo_checkpoint("qwen3_omni"))
    assert embedding_rows(build_skeleton(*resolve_model(config, component), torch.float32)) == rows

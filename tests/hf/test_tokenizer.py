import json
import shutil
from pathlib import Path

import pytest
import torch

import coterie
from coterie.errors import InputError, LoadError
from coterie.generation.inputs import build_inputs
from coterie.generation.processors import Processors
from coterie.hf.configs import load_config, resolve_model
from coterie.hf.skeleton import build_skeleton
from coterie.hf.tokenizer import check_ids, embedding_rows, load_tokenizer, tokenizer_file


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


def test_many_tokens_without_a_row_name_both_numbers(bundled):
    with pytest.raises(LoadError, match=r"4096 tokens have no row.*id 8191, but the embedding has 4096 rows") as caught:
        load_tokenizer(bundled, embedding_rows=4096)
    assert (caught.value.token_id, caught.value.embedding_rows) == (8191, 4096)


def test_a_prompt_with_a_token_without_a_row_is_refused(bundled):
    with pytest.warns(UserWarning, match="1 tokens"):
        tokenizer = load_tokenizer(bundled, embedding_rows=8191)
    check_ids(torch.tensor([[0, 8190]]), tokenizer, 8191)
    with pytest.raises(InputError, match=r"\(id 8191\).*its embedding has 8191") as caught:
        check_ids(torch.tensor([[0, 8191]]), tokenizer, 8191)
    assert caught.value.token_id == 8191


def test_an_added_token_without_a_row(directory):
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 8192, "content": "<|extra|>"})
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"1 tokens .* 8192 rows .*'<\|extra\|>'"):
        processors = Processors(directory, embedding_rows=8192)
    assert build_inputs(processors, "And it came to pass")["input_ids"].shape[1] > 1
    with pytest.raises(InputError, match=r"'<\|extra\|>' \(id 8192\)"):
        build_inputs(processors, "And it <|extra|>")


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

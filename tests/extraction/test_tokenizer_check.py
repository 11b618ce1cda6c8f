"""A tokenizer of another model is found when a store is made or verified, not when text turns out to be noise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from coterie.errors import LoadError
from coterie.extraction import extract
from coterie.inspection import verify

ROWS = 128
"""Of the embeddings of the zoo."""


OTHERS = ROWS + 100
"""Tokens of another model's: more than a few without rows."""


def give_tokenizer(directory: Path, tokens: int) -> None:
    vocabulary = {f"token{i}": i for i in range(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="token0"))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.fixture
def checkpoint(moe: Path, tmp_path: Path) -> Callable[[int], Path]:
    """A checkpoint whose tokenizer has so many tokens."""

    def make(tokens: int, source: Path = moe) -> Path:
        path = shutil.copytree(source, tmp_path / f"checkpoint-{tokens}")
        give_tokenizer(path, tokens)
        return path

    return make


@pytest.fixture
def store(checkpoint: Callable[[int], Path], tmp_path: Path) -> Callable[[int], Path]:
    """A store that was made when nobody looked at the tokenizer."""

    def make(tokens: int, monkeypatch: pytest.MonkeyPatch) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr("coterie.extraction.extraction.check_tokenizer", lambda directory, rows: None)
            extract(checkpoint(tokens), tmp_path / "store")
        return tmp_path / "store"

    return make


def test_a_tokenizer_that_fits(checkpoint, tmp_path):
    source = checkpoint(ROWS)
    extract(source, tmp_path / "store")
    assert verify(tmp_path / "store", against=source).ok
    assert verify(source).ok


def test_a_few_tokens_without_rows_are_warned_of(checkpoint, tmp_path):
    with pytest.warns(UserWarning, match="has 1 tokens that the embedding of 128 rows has no row for"):
        extract(checkpoint(ROWS + 1), tmp_path / "store")
    with pytest.warns(UserWarning, match="has no row for"):
        assert verify(tmp_path / "store").ok


@pytest.mark.parametrize("dry_run", [True, False])
def test_extraction_refuses_another_models_before_it_writes(dry_run, checkpoint, tmp_path):
    with pytest.raises(LoadError, match=r"'token227' has id 227, but the embedding has 128 rows") as caught:
        extract(checkpoint(OTHERS), tmp_path / "store", dry_run=dry_run)
    assert (caught.value.token_id, caught.value.embedding_rows) == (OTHERS - 1, ROWS)
    assert not (tmp_path / "store").exists()


def test_it_is_a_problem_of_a_checkpoint(checkpoint):
    (problem,) = verify(checkpoint(OTHERS)).problems
    assert (problem.kind, problem.file, problem.place) == ("malformed", "tokenizer.json", "token227")
    assert "128 rows" in problem.message


def test_it_is_a_problem_of_a_store(store, monkeypatch):
    (problem,) = verify(store(OTHERS, monkeypatch)).problems
    assert (problem.kind, problem.file, problem.place) == ("malformed", "tokenizer.json", "token227")


def test_a_damaged_file_is_one_problem(store, monkeypatch):
    path = store(OTHERS, monkeypatch)
    text = (path / "tokenizer.json").read_bytes()
    (path / "tokenizer.json").write_bytes(text.replace(b"token128", b"token1\n8"))
    (problem,) = verify(path).problems
    assert (problem.kind, problem.file) == ("corrupt", "tokenizer.json")


def test_one_that_cannot_be_loaded_is_warned_of_and_a_problem(checkpoint, tmp_path):
    source = checkpoint(ROWS)
    (source / "tokenizer.json").write_text("{")
    with pytest.warns(UserWarning, match=r"cannot be used.* The store is made with it as it is"):
        extract(source, tmp_path / "store")
    for path in (source, tmp_path / "store"):
        (problem,) = verify(path).problems
        assert (problem.kind, problem.file, problem.place) == ("malformed", "tokenizer.json", "the file itself")


def test_what_cannot_be_loaded_here_may_be_fine_elsewhere(checkpoint, tmp_path, monkeypatch):
    def lacking(*_: object, **__: object) -> None:
        raise ImportError("sentencepiece is not installed")

    source = checkpoint(ROWS)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lacking)
    with pytest.warns(UserWarning, match="sentencepiece"):
        extract(source, tmp_path / "store")
    for path in (source, tmp_path / "store"):
        with pytest.warns(UserWarning, match=r"was not checked: .*sentencepiece"):
            assert verify(path).ok


def test_a_store_of_a_model_that_is_not_known_here(store, monkeypatch):
    path = store(ROWS, monkeypatch)
    monkeypatch.setattr("transformers.Qwen3MoeForCausalLM", None)
    with pytest.warns(UserWarning, match=r"was not checked: .*no class 'Qwen3MoeForCausalLM'"):
        assert verify(path).ok


@pytest.mark.parametrize("component", ["thinker", "talker", None])
def test_components(component, checkpoint, zoo_checkpoint, tmp_path):
    """The talker reads no text, so its embedding may be smaller, or larger, than the tokenizer."""
    source = checkpoint(1200, zoo_checkpoint("qwen3_omni", torch.bfloat16))
    if component == "talker":
        extract(source, tmp_path / "store", component=component)
        assert verify(tmp_path / "store").ok
        assert verify(source, component=component).ok
    else:
        with pytest.raises(LoadError, match="128 rows"):
            extract(source, tmp_path / "store", component=component)

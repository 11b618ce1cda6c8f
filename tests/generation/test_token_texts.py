"""What tokens are, in words."""

from pathlib import Path

import pytest
import torch

from checkpoint.conftest import REPO, Publish
from checkpoint.hub import LocalHub
from coterie.errors import CoterieError, LoadError, UsageError
from coterie.extraction import extract
from coterie.generation.token_texts import recorded_token_texts, token_texts
from coterie.profiles.heavy_tokens import quoted


def test_the_bundled_model_says_what_its_tokens_are() -> None:
    text_of = token_texts("bundled")
    named = recorded_token_texts("bundled")
    assert named is not None
    texts = [text_of(token) for token in range(300, 330)]
    assert all(texts)
    assert [named(token) for token in range(300, 330)] == texts


def test_no_weights_are_needed(directory: Path) -> None:
    assert not [*directory.glob("*.safetensors")]
    assert token_texts(directory)(300) == token_texts("bundled")(300)


def test_no_weights_are_asked_of_the_hub(hub: LocalHub, publish: Publish, bundled: Path) -> None:
    publish(bundled)
    assert token_texts(REPO)(300) == token_texts("bundled")(300)
    assert "tokenizer.json" in {one.file for one in hub.asked}
    assert not [one for one in hub.asked if one.file.endswith(".safetensors")]


def test_the_tokenizer_of_a_store_that_was_changed_is_not_used(bundled: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    extract(bundled, store)
    assert token_texts(store)(300) == token_texts("bundled")(300)
    with pytest.raises(UsageError, match="is a store"):
        token_texts(store, revision="main")
    with (store / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(CoterieError, match=r"tokenizer_config\.json"):
        token_texts(store)


@pytest.mark.parametrize("token", [2**31, 2**32 - 1])
def test_tokens_that_there_are_not_have_their_numbers(token: int) -> None:
    assert token_texts("bundled")(token) == f"id {token}"


def test_a_model_that_is_not_at_hand_says_nothing(tmp_path: Path) -> None:
    assert recorded_token_texts("") is None
    assert recorded_token_texts("someone/model") is None
    assert recorded_token_texts(str(tmp_path)) is None
    (tmp_path / "tokenizer.json").write_text("5")
    (tmp_path / "config.json").write_text("5")
    assert recorded_token_texts(str(tmp_path)) is None
    with pytest.raises(CoterieError):
        token_texts(tmp_path)


def test_a_model_without_a_tokenizer_says_so(zoo_checkpoint) -> None:
    with pytest.raises(LoadError, match="holds no tokenizer"):
        token_texts(zoo_checkpoint("qwen3_moe", torch.float32))


@pytest.mark.parametrize(
    ("text", "shown"), [(" the", "“ the”"), ("\n\n", "“⏎⏎”"), ("\x1b[2J\ud800", "“�[2J�”"), ("", "“”")]
)
def test_texts_are_shown_with_their_blanks(text: str, shown: str) -> None:
    assert quoted(text) == shown

"""What tokens are, in words."""

from pathlib import Path

import pytest
import torch

from coterie.engine.token_texts import recorded_token_texts, token_texts
from coterie.errors import CoterieError, LoadError
from coterie.profiles.heavy_tokens import quoted


def test_the_bundled_model_says_what_its_tokens_are() -> None:
    text_of = token_texts("bundled")
    named = recorded_token_texts("bundled")
    assert named is not None
    texts = [text_of(token) for token in range(300, 330)]
    assert all(texts)
    assert [named(token) for token in range(300, 330)] == texts


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

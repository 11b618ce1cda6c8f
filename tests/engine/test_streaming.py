import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.engine.streaming import TextStream


def stream(processors, token_ids):
    pieces: list[str] = []
    streamer = TextStream(processors.tokenizer, pieces.append)
    streamer.put(torch.tensor([[5, 6]]))  # the prompt
    for token in token_ids:
        streamer.put(torch.tensor([token]))
    return streamer, pieces


@pytest.mark.parametrize(
    "text", ["And it came to pass", "床前明月光，疑是地上霜。", "Größe 🦊 naïve", "\n  def f():\n", ""]
)
def test_the_pieces_are_whole_characters_and_join_to_the_text(processors, text) -> None:
    streamer, pieces = stream(processors, processors.tokenizer(text)["input_ids"])
    streamer.end()
    assert "".join(pieces) == text == streamer.text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert all(pieces)


def test_a_character_waits_for_its_last_token(processors) -> None:
    ids = processors.tokenizer("🦊")["input_ids"]
    assert len(ids) > 1  # else this tests nothing
    streamer, pieces = stream(processors, ids[:-1])
    assert pieces == []
    streamer.put(torch.tensor(ids[-1:]))
    assert pieces == ["🦊"]


def test_the_end_shows_what_never_became_a_character(processors) -> None:
    streamer, pieces = stream(processors, processors.tokenizer("a🦊")["input_ids"][:-1])
    streamer.end()
    streamer.end()
    assert "".join(pieces) == "a\N{REPLACEMENT CHARACTER}"


def test_special_tokens_count_and_leave_no_text(processors) -> None:
    streamer, pieces = stream(processors, [*processors.tokenizer("yes")["input_ids"], 0])
    assert streamer.token_ids[-1] == 0
    assert "".join(pieces) == "yes"
    assert streamer.first_at <= streamer.last_at


@settings(max_examples=30)
@given(ids=st.lists(st.integers(0, 8191), max_size=20))
def test_any_tokens_join_to_their_decoded_text(processors, ids) -> None:
    streamer, _ = stream(processors, ids)
    streamer.end()
    expected = processors.tokenizer.decode(ids, skip_special_tokens=True)
    # Bytes that are no character may be replaced one by one or several at once, depending on where pieces end.
    assert streamer.text.replace("\N{REPLACEMENT CHARACTER}", "") == expected.replace("\N{REPLACEMENT CHARACTER}", "")

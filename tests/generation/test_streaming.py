import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from coterie.generation.streaming import TextStream

DECODERS = {
    "none": None,
    "Llama": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "replaced at the end": decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "bb")]),
    "metaspace": decoders.Metaspace(),
    "bytes and metaspace": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    "word pieces": decoders.WordPiece(),
    "suffixes": decoders.BPEDecoder(),
    "CTC": decoders.CTC(pad_token="<pad>"),
    "byte level": decoders.ByteLevel(),
    "byte fallback": decoders.ByteFallback(),
    "fuse": decoders.Fuse(),
}
WORDS = ["<pad>", "<end>", "a", "▁", "▁the", "▁a", "##ing", "ing</w>", "x</w>", " ", "  ", "\n", "床", ".", "▁.", "é"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


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
    assert streamer.text == processors.tokenizer.decode(ids, skip_special_tokens=True)


def tokenizer_with(decoder: object) -> PreTrainedTokenizerFast:
    vocabulary = [*WORDS, *BYTES]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>"))
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    if decoder is not None:
        tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def some_tokens(drawn: random.Random) -> list[int]:
    """Words, loose bytes, and texts that are written in bytes; sometimes more than are decoded together."""
    ids = [drawn.choice([drawn.randrange(272), drawn.randrange(len(WORDS))]) for _ in range(drawn.randrange(30))]
    for character in drawn.choices("é床🦊", k=drawn.randrange(6)):
        ids += [len(WORDS) + byte for byte in character.encode()]
    return ids * drawn.choice([1, 1, 1, 40])


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_the_pieces_join_to_the_decoded_text_whatever_the_decoder_does(decoder) -> None:
    tokenizer, drawn = tokenizer_with(decoder), random.Random(0)
    for _ in range(60):
        pieces: list[str] = []
        streamer = TextStream(tokenizer, pieces.append)
        ids = some_tokens(drawn)
        for value in ([5], *([token] for token in ids)):
            streamer.put(torch.tensor(value))
        streamer.end()
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_runs_of_bytes_longer_than_what_is_decoded_together(decoder) -> None:
    tokenizer, drawn = tokenizer_with(decoder), random.Random(0)
    for valid in (True, False, True):
        ids: list[int] = []
        for length in (100, 40, 200):
            text = "".join(drawn.choices("aé床🦊", k=length)).encode()
            ids += [len(WORDS) + (byte if valid else drawn.randrange(256)) for byte in text]
            ids += [drawn.randrange(2, len(WORDS)) for _ in range(drawn.randrange(1, 40))]
        streamer = TextStream(tokenizer)
        for token in ids:
            streamer.read([token])
        streamer.end()
        assert streamer.text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("keep", [(), ("<mark>",)])
def test_a_run_of_bytes_goes_on_after_a_token_without_text(keep) -> None:
    tokenizer = tokenizer_with(DECODERS["byte fallback"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mark>"]})
    streamer = TextStream(tokenizer, keep=keep)
    # "A", a special token, and what is no character: one run, and none of it is a text.
    for token in (len(WORDS) + 0x41, 1, len(WORDS) + 0x80, 2):
        streamer.read([token])
    assert streamer.text == "\N{REPLACEMENT CHARACTER}" * 2 + "a"


def test_text_comes_while_tokens_do_also_with_long_texts(monkeypatch) -> None:
    tokenizer = tokenizer_with(DECODERS["Llama"])
    sizes: list[int] = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **how: (sizes.append(len(ids)), decode(ids, **how))[1])
    pieces: list[str] = []
    streamer = TextStream(tokenizer, pieces.append)
    for value in ([5], *([WORDS.index("▁the")] for _ in range(2000))):
        streamer.put(torch.tensor(value))
    assert pieces == ["the", *[" the"] * 1999]
    assert max(sizes) < 200  # what a token costs does not grow with the text


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["床"], "a the"),
        (["the床a"], "a the床床"),
        (["a床"], "a the床床"),
        (["nothing", " the"], "a"),
        ([], "a the床床"),
    ],
)
def test_a_stop_ends_the_text_before_it_and_is_not_shown_in_part(stops, expected) -> None:
    tokenizer = tokenizer_with(DECODERS["Llama"])
    pieces: list[str] = []
    streamer = TextStream(tokenizer, pieces.append, stops=stops)
    for word in ("prompt", "a", "▁the", "床", "床"):
        streamer.put(torch.tensor([WORDS.index(word) if word in WORDS else 0]))
        if "the床a" in stops and word == "▁the":
            assert "".join(pieces) == "a "  # may be the beginning of the stop
    streamer.end()
    assert "".join(pieces) == streamer.text == expected
    assert streamer.stopped == (expected != "a the床床")


def test_a_stop_longer_than_what_is_decoded_together() -> None:
    tokenizer = tokenizer_with(DECODERS["Llama"])
    streamer = TextStream(tokenizer, stops=[" the" * 300])
    for word in ("a", *["▁the"] * 299):
        streamer.read([WORDS.index(word)])
    assert (streamer.text, streamer.stopped) == ("a", False)
    streamer.read([WORDS.index("▁the")])
    assert (streamer.text, streamer.stopped) == ("a", True)


def test_marks_are_kept_where_they_are_asked_for() -> None:
    tokenizer = tokenizer_with(DECODERS["Llama"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mark>"]})
    mark, end = tokenizer.convert_tokens_to_ids(["<mark>", "<end>"])
    for keep, expected in (((), "aa"), (("<mark>",), "a<mark>a")):
        streamer = TextStream(tokenizer, keep=keep)
        for token in (5, 2, mark, 2, end):
            streamer.put(torch.tensor([token]))
        streamer.end()
        assert streamer.text == expected

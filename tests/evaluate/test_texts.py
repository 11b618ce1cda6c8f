import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from coterie.errors import InputError, UsageError
from coterie.evaluate import encode
from coterie.evaluate.texts import check_same_tokens


def tokenizer(*words: str, begins: bool = False, lowercase: bool = False) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<s>", "<unk>", *words])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    if begins:
        inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    if lowercase:
        from tokenizers.normalizers import Lowercase

        inner.normalizer = Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="<unk>")


def test_a_text_is_one_stream_of_tokens() -> None:
    text = encode(tokenizer("a", "b"), "a b\n\nb zz", name="x")
    assert (text.ids, text.prefix) == ((2, 3, 3, 1), ())


def test_what_the_tokenizer_begins_texts_with_begins_windows() -> None:
    text = encode(tokenizer("a", "b", begins=True), "a b b", name="x")
    assert (text.ids, text.prefix) == ((2, 3, 3), (0,))


def test_a_limit_counts_predictions() -> None:
    assert len(encode(tokenizer("a"), "a " * 50, name="x", limit=7).ids) == 8


def test_one_token_is_too_few() -> None:
    with pytest.raises(InputError, match="x has too few tokens, 1"):
        encode(tokenizer("a"), "a", name="x")


def test_other_vocabularies_and_other_readings_are_refused() -> None:
    one, content = tokenizer("a", "b"), "a A b"
    text = [encode(one, content, name="x")]
    check_same_tokens(one, tokenizer("a", "b"), text, text)
    other = tokenizer("a", "c")
    with pytest.raises(UsageError, match="2 tokens differ, such as 'b', which is id 3 in one and absent in the other"):
        check_same_tokens(one, other, text, text)
    swapped = tokenizer("b", "a")
    with pytest.raises(UsageError, match="'a', which is id 2 in one and id 3"):
        check_same_tokens(one, swapped, text, text)
    lower = tokenizer("a", "b", lowercase=True)
    with pytest.raises(UsageError, match="tokenise x differently"):
        check_same_tokens(one, lower, text, [encode(lower, content, name="x")])

import base64
import json
import os

import pytest

from coterie.errors import LoadError
from coterie.hf.tokenizer_limits import check_tokenizer_files

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def table(*texts: str) -> str:
    return base64.b64encode((4).to_bytes(4, "little") + b"trie" + b"\0".join(map(str.encode, texts)) + b"\0").decode()


def sequence(*steps: object) -> dict[str, object]:
    return {"type": "Sequence", "normalizers": list(steps), "decoders": list(steps)}


GROWS = [
    {"normalizer": sequence(*[REPLACE] * 3)},
    {"normalizer": sequence(sequence(REPLACE, REPLACE), sequence(REPLACE))},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 5000}},
    {"normalizer": {"type": "Prepend", "prepend": "a" * 2_000_000}},
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": table("a", "b" * 5000)}},
    {"decoder": sequence(*[REPLACE] * 3)},
    {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}] * 5000}},
    {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}] * 100,
                        "special_tokens": {"x": {"ids": [0] * 20_000}}}},
]  # fmt: skip
FINE = [
    {},
    {"normalizer": None, "decoder": 5},
    {"normalizer": sequence({"type": "Prepend", "prepend": "▁"}, SPACES), "decoder": sequence(SPACES)},
    {"normalizer": sequence(REPLACE)},
    {"normalizer": sequence({"type": "NFKC"}, {"type": "Precompiled", "precompiled_charsmap": table("ab", "c" * 33)})},
    {"post_processor": {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "B"}}]}},
]


@pytest.mark.parametrize("parts", GROWS, ids=range(len(GROWS)))
@pytest.mark.parametrize("escaped", [False, True])
def test_texts_that_would_grow_without_end_are_refused(tmp_path, parts, escaped) -> None:
    text = json.dumps(parts)
    if escaped:  # the same for JSON, and hidden from a search
        text = text.replace("Replace", "R\\u0065place").replace("Prepend", "Pr\\u0065pend")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(LoadError, match=next(iter(parts))) as refused:
        check_tokenizer_files(tmp_path)
    assert refused.value.key in parts


@pytest.mark.parametrize("parts", FINE, ids=range(len(FINE)))
def test_what_released_tokenizers_do_is_fine(tmp_path, parts) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    check_tokenizer_files(tmp_path)


def test_an_ordinary_file_is_not_read_twice(tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(FINE[2], ensure_ascii=False)[:-1])
    check_tokenizer_files(tmp_path)  # is no JSON, which whoever loads it will say


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_small_files_are_objects(tmp_path, name) -> None:
    (tmp_path / name).write_text('{"model_max_length": ' + "1" + "0" * 30 + "}")
    check_tokenizer_files(tmp_path)
    for text in ("[]", "{", "[" * 100_000, "\ud800"):
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(LoadError, match=name):
            check_tokenizer_files(tmp_path)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "config.json"]
)
def test_only_regular_files_are_opened(tmp_path, name) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(LoadError, match="FIFO"):
        check_tokenizer_files(tmp_path)

"""What the files of a tokenizer may ask for, found out before a library loads them.

A tokenizer.json is a program: normalisers that replace a letter by a thousand, one after the other, make gigabytes of a
word, and templates repeat a text as often as they like. How much longer a text can become follows from the file alone.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import LoadError
from coterie.files.json_text import JsonLimits, JsonProblem, parse_json, read_json_object
from coterie.files.regular import open_regular, read_bounded

_SMALL = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
_SMALL_LIMITS = JsonLimits(digits=40)
"""``model_max_length`` is 10**30 in many of them."""
_LARGE_LIMITS = JsonLimits(nbytes=256 * 2**20, values=20_000_000, digits=40)
_FASTER = "tokenizer.json"
_OTHERS = ("tokenizer*", "*.tiktoken", "vocab*", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
           "chat_template*", "additional_chat_templates/*.jinja", "*tokens*.json", "config.json")  # fmt: skip

_MOST_GROWTH = 1024
"""A text may become so many times as long; a normalisation of Unicode makes eighteen of one at most."""
_MOST_ADDED = 2**20
_MOST_STEPS = 4096

_ASCII_ESCAPE = re.compile(rb"\\u00[2-7][0-9A-Fa-f]")
_GROWING = re.compile(rb'"type"\s*:\s*"(?:Replace|Precompiled|Prepend|TemplateProcessing)"')
_HARMLESS = re.compile(
    rb'\{\s*"type"\s*:\s*"(?:Replace"\s*,\s*"pattern"\s*:\s*\{\s*"String"\s*:\s*"[^"\\]+"\s*\}\s*,'
    rb'\s*"content"\s*:\s*"[^"\\]{0,3}"|'
    rb'Prepend"\s*,\s*"prepend"\s*:\s*"[^"\\]{0,3}")\s*\}'
)
"""What nearly all tokenizers do: replace something by one character (of three bytes), or put one in front."""


@dataclass(frozen=True, slots=True)
class _Growth:
    """A text of n characters becomes one of at most ``times`` · n + ``added``."""

    times: float = 1.0
    added: float = 0.0

    def then(self, after: _Growth) -> _Growth:
        return _Growth(self.times * after.times, self.added * after.times + after.added)


def check_tokenizer_files(directory: Path) -> None:
    """Refuses files of a tokenizer that would hang or fill the memory of whoever loads and uses it.

    Args:
        directory: A model directory.

    Raises:
        LoadError: If one is no regular file, no JSON, too large, or asks for too much. Fact ``path``.
    """
    for name in _SMALL:
        try:
            read_json_object(directory / name, limits=_SMALL_LIMITS, error=LoadError, advice="Download it again.")
        except FileNotFoundError:
            continue
    for path in {path for pattern in _OTHERS for path in directory.glob(pattern)}:
        if not path.is_dir():
            _check_regular(path)
    path = directory / _FASTER
    try:
        data = read_bounded(path, _LARGE_LIMITS.nbytes)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}.", advice="Check what it is.", path=path) from error
    if _may_grow(data):
        _check_growth(path, data)


def _check_regular(path: Path) -> None:
    try:
        os.close(open_regular(path))
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}.", advice="Check what it is.", path=path) from error


def _may_grow(data: bytes) -> bool:
    """Whether it takes a look at the whole file, which takes a second for a large one, to know how texts grow."""
    return bool(_ASCII_ESCAPE.search(data)) or len(_GROWING.findall(data)) > len(_HARMLESS.findall(data))


def _check_growth(path: Path, data: bytes) -> None:
    try:
        parts = parse_json(data, _LARGE_LIMITS)
    except JsonProblem as error:
        raise LoadError(f"{path} is not valid JSON: {error}.", advice="Download it again.", path=path) from error
    if not isinstance(parts, dict):
        raise LoadError(f"{path} is not a JSON object.", advice="Download it again.", path=path)
    for key, nested in (("normalizer", "normalizers"), ("decoder", "decoders"), ("post_processor", "processors")):
        growth = _Growth()
        for number, step in enumerate(_steps(parts.get(key), nested)):
            growth = growth.then(_growth_of(step))
            if growth.times > _MOST_GROWTH or growth.added > _MOST_ADDED or number > _MOST_STEPS:
                raise LoadError(
                    f"The {key} in {path} makes too much of a text: {growth.times:.4g} times as much and more.",
                    advice="It is broken or hostile. Use the tokenizer of the model's publisher.",
                    path=path,
                    key=key,
                )


def _steps(part: Any, nested: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a normaliser, decoder or post-processor, in order; nested sequences one after the other."""
    stack = [part]
    while stack:
        step = stack.pop()
        if isinstance(step, dict):
            yield step
            if isinstance(step.get(nested), list):
                stack += reversed(step[nested])


def _growth_of(step: Mapping[str, Any]) -> _Growth:
    kind = step.get("type")
    if kind == "Replace":
        content, pattern = len(str(step.get("content", ""))), step.get("pattern")
        text = pattern.get("String") if isinstance(pattern, dict) else pattern
        if isinstance(text, str) and text:
            return _Growth(max(1.0, content / len(text)), content)
        # An expression may find nothing, between any two characters.
        return _Growth(1.0 + content, content)
    if kind == "Prepend":
        return _Growth(1.0, len(str(step.get("prepend", ""))))
    if kind == "Precompiled":
        return _Growth(_longest_replacement(step.get("precompiled_charsmap")), 0.0)
    if kind == "TemplateProcessing":
        return _template_growth(step)
    # Normalisations of Unicode make eighteen characters of one at most, and nothing more of these.
    return _Growth()


def _longest_replacement(charsmap: Any) -> float:
    """The longest text in SentencePiece's table of replacements: texts behind a trie, each with a zero after it."""
    try:
        table = base64.b64decode(charsmap, validate=False)
    except (TypeError, ValueError, binascii.Error):
        return 1.0
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return float(max((len(text) for text in texts.split(b"\0")), default=1) or 1)


def _template_growth(step: Mapping[str, Any]) -> _Growth:
    """How often a template repeats a text, and how many special tokens it puts around."""
    special = step.get("special_tokens")
    lengths = {
        name: len(token["ids"])
        for name, token in (special.items() if isinstance(special, dict) else ())
        if isinstance(token, dict) and isinstance(token.get("ids"), list)
    }
    times = added = 0
    for kind in ("single", "pair"):
        pieces = step.get(kind)
        repeated = extra = 0
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, dict) and "Sequence" in piece:
                repeated += 1
            elif isinstance(piece, dict) and isinstance(piece.get("SpecialToken"), dict):
                extra += lengths.get(str(piece["SpecialToken"].get("id")), 1)
        times, added = max(times, repeated), max(added, extra)
    return _Growth(float(max(1, times)), float(added))

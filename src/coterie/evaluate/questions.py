"""Questions with one right answer: sounds, pictures and prompts, each with the text that a model should say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import CoterieError, InputError
from coterie.files.json_text import JsonLimits, parse_json
from coterie.files.text import read_text
from coterie.generation.chat import chat_inputs, user_message
from coterie.hf.tokenizer import decode_tokens

if TYPE_CHECKING:
    from coterie.generation.processors import Processors

DEFAULT_ANSWER_TOKENS = 32
_LINE = JsonLimits(nbytes=1 << 20, depth=2, values=64)
_KEYS = ("audio", "image", "prompt", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        file: The file that it is from.
        line: Its line there, from 1.
        expected: The right answer.
        prompt: What is asked, or nothing.
        audio: A sound to be heard before it, or None.
        image: A picture to be seen before it, or None.
        new_tokens: The most tokens of an answer.
        length: Tokens of question and answer at most.
        digest: Hex digits that differ if a model may answer differently.
    """

    file: str
    line: int
    expected: str
    prompt: str
    audio: Path | None
    image: Path | None
    new_tokens: int
    length: int
    digest: str

    @property
    def asked(self) -> str:
        """What results call it: its sound, its picture, or its prompt."""
        return next((str(path) for path in (self.audio, self.image) if path is not None), self.prompt)

    def inputs(self, processors: Processors) -> Any:
        """What the model is given: a turn of a chat, or where it has no template, something to go on with."""
        return _inputs(processors, self.prompt, self.audio, self.image)

    def answer(self, tokenizer: Any, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, without special ones and without space around it."""
        return decode_tokens(tokenizer, ids, skip_special_tokens=True).strip()


def read_questions(path: str | Path, processors: Processors, *, new_tokens: int) -> list[Question]:
    """The questions of a file of JSON lines, after all that they name has been read once.

    Each line is an object with ``text``, the right answer, and at least one of ``audio``, ``image`` (names of files,
    relative to that of the lines) and ``prompt``.

    Args:
        path: The file.
        processors: Those of the model.
        new_tokens: The most tokens of an answer.

    Raises:
        InputError: If it is missing or empty, a line is no question, or a sound or picture cannot be used; it names
            the line.
    """
    lines = read_text(path, filled=True).splitlines()
    found = [
        _question(Path(path), number, line, processors, new_tokens)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    return found


def _question(path: Path, number: int, line: str, processors: Processors, new_tokens: int) -> Question:
    where = f"Line {number} of {path}"
    try:
        values = _values(line)
    except ValueError as error:
        raise InputError(
            f"{where} is no question: {error}.",
            advice='Write one such as {"audio": "bird.wav", "text": "bird"} in each line.',
            path=path,
            line=number,
        ) from error
    prompt = values.get("prompt", "")
    audio, image = (path.parent / values[kind] if kind in values else None for kind in ("audio", "image"))
    try:
        tokens = int(_inputs(processors, prompt, audio, image)["input_ids"].shape[1])
        contents = [None if one is None else hashlib.sha256(one.read_bytes()).hexdigest() for one in (audio, image)]
    except CoterieError as error:
        raise type(error)(f"{where}: {error.message}", advice=error.advice, **error.facts) from error
    return Question(
        file=str(path),
        line=number,
        expected=values["text"].strip(),
        prompt=prompt,
        audio=audio,
        image=image,
        new_tokens=new_tokens,
        length=tokens + new_tokens,
        digest=hashlib.sha256(repr((prompt, contents, new_tokens)).encode()).hexdigest(),
    )


def _values(line: str) -> Mapping[str, str]:
    found = parse_json(line.encode(), _LINE)
    if not isinstance(found, dict) or not all(isinstance(value, str) and value for value in found.values()):
        raise ValueError("it is no object of texts that are not empty")
    unknown = sorted(found.keys() - set(_KEYS))
    if unknown:
        raise ValueError(f"it has {unknown[0]!r}, which is none of {', '.join(_KEYS)}")
    if "text" not in found:
        raise ValueError("it has no 'text', the right answer")
    if len(found) < 2:
        raise ValueError("it asks nothing: it has no 'audio', 'image' or 'prompt'")
    return found


def _inputs(processors: Processors, prompt: str, audio: Path | None, image: Path | None) -> Any:
    sounds, pictures = ([] if one is None else [one] for one in (audio, image))
    return chat_inputs(processors, [user_message(prompt, audios=sounds, images=pictures)])

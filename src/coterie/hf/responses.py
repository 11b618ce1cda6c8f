"""What a tokenizer says about its model's answers: how they are taken apart, within limits of time and memory.

Releases of transformers know it as ``response_schema``, later ones as ``response_template``; each reads one of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coterie.errors import InputError
from coterie.files.json_text import JsonLimits, parse_json
from coterie.hf.limited import TooLong, run_limited

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 2
"""Seconds of processor time that taking an answer apart may take; it takes a tenth."""
_WALL_SECONDS = 4.5
_MEMORY = 384 * 2**20
_FORM_NBYTES = 256 * 1024
_LONGEST = 64 * 1024
"""Bytes that a message may have, beyond twelve times its answer: a character may become an escape of so many."""
_ANSWER = JsonLimits(nbytes=64 * 2**20, depth=64, values=200_000)

Kind = Literal["response_template", "response_schema"]
_FIELDS: dict[Kind, str] = {"response_template": "fields", "response_schema": "properties"}
_READERS: dict[Kind, str] = {"response_template": "chat_parsing", "response_schema": "chat_parsing_utils.py"}
"""Where releases of transformers that read it have what does."""


@dataclass(frozen=True, slots=True)
class ResponseForm:
    """What a tokenizer says about answers.

    Attributes:
        kind: What it calls that.
        form: That, as JSON has it.
        fields: What messages may have by it.
    """

    kind: Kind
    form: Mapping[str, Any]
    fields: frozenset[str]


class UnreadableResponse(Exception):
    """An answer that cannot be taken apart as its tokenizer says; never leaves this package's callers."""


def response_form(tokenizer: PreTrainedTokenizerBase) -> ResponseForm | None:
    """What a tokenizer says about answers, if the installed transformers reads it; None if it says nothing usable."""
    for kind, name in _FIELDS.items():
        if not (_transformers() / "utils" / _READERS[kind]).exists():
            continue
        form = getattr(tokenizer, kind, None)
        fields = form.get(name) if isinstance(form, Mapping) else None
        if isinstance(form, Mapping) and isinstance(fields, Mapping) and len(_written(form)) <= _FORM_NBYTES:
            return ResponseForm(kind, form, frozenset(map(str, fields)))
    return None


def parse_response(
    form: ResponseForm, text: str, *, prompt: str, tools: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Takes an answer apart, as ``parse_response`` of transformers does.

    A process of its own does it, which is limited in memory and time and ends with the request: some 80 ms.

    Args:
        form: What its tokenizer says.
        text: The answer with its special tokens.
        prompt: The rendered prompt, which may have begun the answer.
        tools: What may be called: their parameters' types are read.

    Raises:
        UnreadableResponse: If it cannot be, or takes more time or memory than the limits.
    """
    request = json.dumps({
        "kind": form.kind, "form": form.form, "text": text, "prompt": prompt, "tools": list(tools),
        "transformers": str(_transformers()), "longest": _LONGEST + 12 * len(text),
    }).encode("ascii")  # fmt: skip
    script = Path(__file__).with_name("response_process.py")
    try:
        written = run_limited(
            script, request, ("regex",), memory=_MEMORY + 16 * len(request), seconds=SECONDS,
            wall_seconds=_WALL_SECONDS,
        )  # fmt: skip
    except TooLong as error:
        raise UnreadableResponse(f"it takes more than {SECONDS} s") from error
    except InputError as error:
        raise UnreadableResponse(error.message) from error
    try:
        answer = parse_json(written, _ANSWER)
    except ValueError:
        # Nothing was written where there is too little memory even to say so.
        raise UnreadableResponse("it takes too much memory, or makes what is no JSON") from None
    if "problem" in answer:
        raise UnreadableResponse(str(answer["problem"]))
    if not isinstance(answer["message"], dict):
        raise UnreadableResponse("it makes no message")
    return answer["message"]


def _transformers() -> Path:
    """The folder of the installed release."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _written(form: Mapping[str, Any]) -> str:
    try:
        return json.dumps(form, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return " " * (_FORM_NBYTES + 1)

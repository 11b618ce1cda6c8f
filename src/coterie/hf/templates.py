"""Chat templates: which one a model has, and what it makes of a conversation, within limits of time and memory."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import InputError, LoadError
from coterie.files.json_text import JsonLimits, read_json_object
from coterie.files.regular import read_bounded
from coterie.files.text import decode_text
from coterie.hf.limited import TooLong, run_limited_often

SECONDS = 2
"""Seconds of processor time that a template may take; ordinary ones take hundredths."""
_WALL_SECONDS = 4.5
"""On a clock: a prompt may take two renderings, and nobody is to wait for more than ten seconds."""
_MEMORY = 384 * 2**20
"""Address space of the process that renders, whose interpreter takes some 60 MiB of it."""
_LONGEST = 500_000
"""Characters that a rendered conversation may have, beyond four times its own: what a template says by itself."""
_TEMPLATE_LIMIT = 4 * 2**20

"""A template, or several by name."""


_MAKING = ("set", "for", "macro", "block")
"""Words after which a template gives a name itself."""
_WORDS = frozenset({
    "and", "as", "block", "break", "call", "continue", "do", "elif", "else", "endblock", "endcall", "endfilter",
    "endfor", "endgeneration", "endif", "endmacro", "endset", "false", "filter", "for", "from", "generation", "if",
    "import", "in", "include", "is", "macro", "not", "none", "or", "recursive", "set", "true", "with", "without",
    "endwith", "False", "None", "True", "dict", "loop", "namespace", "range", "raise_exception", "strftime_now",
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
})  # fmt: skip
"""Names in templates that are no settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What a template made of one form of a conversation.

    Attributes:
        text: The prompt; None if the template refused.
        problem: Why it did, or None.
    """

    text: str | None = None
    problem: str | None = None


def choose_template(template: Any, name: str | None, *, path: Path) -> str | None:
    """The template to use among what a tokenizer or processor has.

    Args:
        template: Nothing, a text, or several by name: as an object, or as a list of ``{"name", "template"}``.
        name: The one to use of several; by default ``default``.
        path: Where it comes from, for errors.

    Raises:
        LoadError: If it is something else, or there is no such template; fact ``names``.
    """
    if isinstance(template, list) and all(isinstance(entry, dict) and len(entry) == 2 for entry in template):
        template = {entry.get("name"): entry.get("template") for entry in template}
    if template is None or (isinstance(template, str) and name is None):
        return template
    if isinstance(template, dict) and all(isinstance(text, str) for pair in template.items() for text in pair):
        wanted = "default" if name is None else name
        if wanted in template:
            return str(template[wanted])
        raise LoadError(
            f"{path} has no chat template called {wanted!r}.",
            advice=f"Name one of {', '.join(map(repr, sorted(template)))} (--chat-template).",
            path=path,
            names=sorted(template),
        )
    if isinstance(template, str):
        raise LoadError(f"{path} has one chat template, and none called {name!r}.", path=path, names=[])
    raise LoadError(f"chat_template in {path} is neither a text nor several by name.", path=path, key="chat_template")


def processor_template(directory: Path) -> Any:
    """The template of checkpoints that keep it with the processor instead of the tokenizer; None if there is none.

    Raises:
        LoadError: If there is a file for it that cannot be read.
    """
    file = directory / "chat_template.json"
    try:
        value = read_json_object(file, error=LoadError, advice="Download it again, or remove it.")
    except FileNotFoundError:
        return None
    if "chat_template" not in value:
        raise LoadError(f"{file} has no chat_template.", path=file, key="chat_template")
    return value["chat_template"]


def template_of_file(path: Path) -> str:
    """A template that somebody keeps in a file of his own: the text, or ``chat_template`` of a ``.json`` file.

    Raises:
        InputError: If there is no such file, or it holds something else.
    """
    try:
        if path.suffix == ".json":
            limits = JsonLimits(nbytes=_TEMPLATE_LIMIT)
            value = read_json_object(path, limits=limits, error=InputError, advice="Check the file.")
            template = choose_template(value.get("chat_template"), None, path=path)
        else:
            template = decode_text(read_bounded(path, _TEMPLATE_LIMIT), str(path), path=path)
    except OSError as error:
        raise InputError(f"The chat template {path} cannot be read: {error.strerror}.", path=path) from error
    if not template:
        raise InputError(f"{path} holds no chat template.", path=path)
    return template


def render(
    template: str, conversations: Sequence[Sequence[Mapping[str, Any]]], variables: Mapping[str, Any]
) -> list[Rendered]:
    """Renders one or several forms of a conversation.

    A process of its own does it, which is limited in memory and time and ends with the request: some 80 ms, and 3
    inside :func:`~coterie.hf.limited.kept_ready`.

    Args:
        template: The template.
        conversations: Forms of it: messages as the template is to see them, of JSON values.
        variables: What else the template sees.

    Returns:
        What became of each.

    Raises:
        InputError: If the template takes more time or memory than the limits.
    """
    request = json.dumps(
        {
            "template": template,
            "conversations": [[_without_nulls(message) for message in form] for form in conversations],
            "variables": {"tools": None, "documents": None, **variables},
            "longest": _LONGEST + 4 * max(len(str(form)) for form in conversations),
        }
    ).encode("ascii")
    memory = _MEMORY + 16 * len(request)
    script = Path(__file__).with_name("template_process.py")
    try:
        written = run_limited_often(
            script, request, ("jinja2", "markupsafe"), memory=memory, seconds=SECONDS, wall_seconds=_WALL_SECONDS
        )
    except TooLong as error:
        raise _endless() from error
    return _read_answer(written, memory)


def _read_answer(written: bytes, memory: int) -> list[Rendered]:
    try:
        answer = json.loads(written)
    except ValueError:
        answer = "memory"  # too little even to say so, or a stack of calls that ended the interpreter
    if answer == "memory":
        raise InputError(
            f"The model's chat template takes more than {memory // 2**20} MiB for this conversation.",
            advice="It is broken or hostile. Pass another one (--chat-template).",
        )
    return [Rendered(text=one.get("text"), problem=" ".join(one.get("error", "").split()) or None) for one in answer]


def _endless() -> InputError:
    return InputError(
        f"The model's chat template takes more than {SECONDS} s for this conversation.",
        advice="It is broken or hostile. Pass another one (--chat-template).",
    )


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without keys that have no value, as transformers shows it to a template."""
    return {key: value for key, value in message.items() if value is not None}


@functools.lru_cache(maxsize=8)
def settings_of(template: str) -> frozenset[str]:
    """Names that a template reads and does not make itself: what it can be told.

    The template is cut into tokens and not parsed, which a hostile one could make endless.

    Args:
        template: The template.
    """
    try:
        from jinja2 import Environment, TemplateSyntaxError
    except ImportError:
        return frozenset()  # whoever renders it is told what is missing

    read: set[str] = set()
    made: set[str] = set()
    before = earlier = ""
    try:
        for _, kind, text in Environment().lex(template):
            is_test = before == "is" or (earlier, before) == ("is", "not")
            if kind == "name" and before not in (".", "|") and not is_test:
                (made if before in _MAKING and text not in read else read).add(text)
            if kind != "whitespace":
                earlier, before = before, text
    except TemplateSyntaxError:
        return frozenset()
    return frozenset(read - made - _WORDS)


def is_json(value: object) -> bool:
    """Whether a value is one that a template may be given."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True

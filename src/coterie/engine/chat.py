"""Conversations: the model's chat template where there is one, plain text to continue where there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.engine.inputs import build_inputs
from coterie.engine.processors import Processors
from coterie.errors import InputError, LoadError

if TYPE_CHECKING:
    from transformers import BatchFeature


def chat_inputs(source: str | Path | Processors, messages: Sequence[Mapping[str, Any]]) -> BatchFeature:
    """Makes the inputs for the next turn of a conversation.

    Where the tokenizer has a chat template, it is applied and the assistant's turn is opened. Where it has none, the
    model was not trained to chat: the contents of the messages, one per line, are the text that it continues, and roles
    leave no trace in it.

    Args:
        source: A model directory or its :class:`Processors`.
        messages: Each with ``role`` (``system``, ``user``, ``assistant``) and ``content``: a text, or a list of parts
            ``{"type": "text", "text": ...}``, ``{"type": "image", "path": ...}``, ``{"type": "audio", "path": ...}``.

    Returns:
        As :func:`build_inputs`.

    Raises:
        InputError: If a message is not of this form, the template refuses the conversation, or as
            :func:`build_inputs`.
    """
    processors = source if isinstance(source, Processors) else Processors(source)
    images: list[str] = []
    audios: list[str] = []
    turns = [_read_message(message, images, audios) for message in messages]
    if not turns:
        raise InputError("The conversation is empty.")
    template = chat_template(processors)
    if template is None:
        lines = ["".join(_as_text(processors, part) for part in parts) for _, parts in turns]
        return build_inputs(processors, "\n".join(lines), images=images, audios=audios)
    rendered = _render(processors, template, turns)
    return build_inputs(processors, rendered, images=images, audios=audios, add_special_tokens=False)


def _read_message(message: Mapping[str, Any], images: list[str], audios: list[str]) -> tuple[str, list[dict[str, str]]]:
    """Checks a message; appends its media to the lists and returns role and parts."""
    role, content = message.get("role"), message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(role, str) or not isinstance(content, Sequence):
        raise InputError(f"A message needs a 'role' and a 'content' of text or parts, not {dict(message)!r}.")
    parts: list[dict[str, str]] = []
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                parts.append({"type": "text", "text": text})
            case {"type": "image", "path": str() | Path() as file}:
                images.append(str(file))
                parts.append({"type": "image"})
            case {"type": "audio", "path": str() | Path() as file}:
                audios.append(str(file))
                parts.append({"type": "audio"})
            case _:
                raise InputError(
                    f"{part!r} is not a part of a message.",
                    advice="Parts are {'type': 'text', 'text': ...}, {'type': 'image', 'path': ...} and "
                    "{'type': 'audio', 'path': ...}.",
                )
    return role, parts


def _as_text(processors: Processors, part: Mapping[str, str]) -> str:
    if part["type"] == "text":
        return part["text"]
    tokens = processors.pictures if part["type"] == "image" else processors.sounds
    return "" if tokens is None else tokens.placeholder


def chat_template(processors: Processors) -> str | None:
    """The template that turns messages into a prompt, or None where the model was not trained to chat.

    Raises:
        LoadError: If there is a file for it that cannot be read.
    """
    template: str | None = processors.tokenizer.chat_template or _processor_template(processors.path)
    return template


def _processor_template(path: Path) -> str | None:
    """The template of checkpoints that keep it with the processor instead of the tokenizer."""
    file = path / "chat_template.json"
    if not file.is_file():
        return None
    try:
        template = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LoadError(f"{file} cannot be read: {error}", path=file) from error
    return str(template)


def _render(processors: Processors, template: Any, turns: list[tuple[str, list[dict[str, str]]]]) -> str:
    from jinja2 import TemplateError

    # Templates of text-only models take plain strings, those of multimodal ones take parts too.
    conversation = [
        {
            "role": role,
            "content": parts if any(p["type"] != "text" for p in parts) else "".join(p["text"] for p in parts),
        }
        for role, parts in turns
    ]
    try:
        return str(
            processors.tokenizer.apply_chat_template(
                conversation, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"The model's chat template refuses this conversation: {error}") from error

"""Conversations: the model's chat template where there is one, plain text to continue where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import InputError
from coterie.generation.chat_options import ChatOptions
from coterie.generation.inputs import build_inputs, check_text
from coterie.generation.media_files import MediaFiles
from coterie.generation.placeholders import MediaTokens
from coterie.generation.processors import Processors
from coterie.generation.video_options import VideoOptions
from coterie.hf.foreign import foreign
from coterie.hf.templates import (
    Rendered,
    choose_template,
    is_json,
    processor_template,
    render,
    settings_of,
    template_of_file,
)

if TYPE_CHECKING:
    from transformers import BatchFeature

_MARKER = "48151623420"
"""Stands in for a text that a template changed, to see whether it shows it at all: no case, and nothing to quote."""
_MEDIA = ("image", "audio", "video")
"""Parts of a message that are files."""
_KEPT = ("reasoning_content", "thinking", "tool_calls", "tool_call_id", "name")
"""What a turn of the assistant, or of a tool, may hold besides its content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation as a text to continue.

    Attributes:
        text: The text.
        template: The template that made it, or None where the model has none.
        media: The files that it mentions.
    """

    text: str
    template: str | None
    media: MediaFiles

    def inputs(self, processors: Processors) -> BatchFeature:
        """The model's inputs. Raises as :func:`~coterie.generation.inputs.build_inputs`."""
        return build_inputs(
            processors,
            self.text,
            images=self.media.images,
            audios=self.media.audios,
            videos=self.media.videos,
            video_options=self.media.options,
            add_special_tokens=self.template is None,
        )


@dataclass(frozen=True, slots=True)
class _Turn:
    """A message, checked: who, what, and what else the template may read."""

    role: str
    parts: list[dict[str, str]]
    more: dict[str, Any]

    @property
    def text(self) -> str:
        return "".join(part.get("text", "") for part in self.parts)

    @property
    def has_media(self) -> bool:
        return any(part["type"] != "text" for part in self.parts)


def user_message(
    text: str,
    *,
    images: Sequence[str | Path] = (),
    audios: Sequence[str | Path] = (),
    videos: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """A turn of the user, as :func:`chat_inputs` takes it.

    Args:
        text: What the user says; may be empty if there is a picture, sound or video.
        images: Picture files shown before the text.
        audios: Sound files played before the text.
        videos: Video files shown before the text.
    """
    parts = [{"type": "image", "path": str(path)} for path in images]
    parts += [{"type": "audio", "path": str(path)} for path in audios]
    parts += [{"type": "video", "path": str(path)} for path in videos]
    if text:
        parts.append({"type": "text", "text": text})
    return {"role": "user", "content": parts}


def chat_inputs(
    source: str | Path | Processors,
    messages: Sequence[Mapping[str, Any]],
    options: ChatOptions | None = None,
    *,
    video_options: VideoOptions | None = None,
) -> BatchFeature:
    """Makes the inputs for the next turn of a conversation.

    Where the tokenizer has a chat template, it is applied and the assistant's turn is opened. Where it has none, the
    model was not trained to chat: the contents of the messages, one per line, are the text that it continues, and roles
    leave no trace in it.

    Args:
        source: A model directory or its :class:`Processors`.
        messages: Each with ``role`` (``system``, ``user``, ``assistant``, ``tool``) and ``content``: a text, or a list
            of parts ``{"type": "text", "text": ...}``, ``{"type": "image", "path": ...}``, ``{"type": "audio", "path":
            ...}``, ``{"type": "video", "path": ...}``, in any order. A turn of the assistant may have
            ``reasoning_content`` and ``tool_calls``, too.
        options: Another template, and what it is told.
        video_options: Which frames of a video are shown, how large, and whether its sound is heard.

    Returns:
        As :func:`build_inputs`.

    Raises:
        InputError: If a message is not of this form, the template refuses the conversation or leaves a text out, or as
            :func:`build_inputs`.
        LoadError: If the template cannot be used.
        UsageError: If it is told what it does not read.
    """
    processors = source if isinstance(source, Processors) else Processors(source)
    return chat_prompt(processors, messages, options, video_options=video_options).inputs(processors)


def chat_prompt(
    processors: Processors,
    messages: Sequence[Mapping[str, Any]],
    options: ChatOptions | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    video_options: VideoOptions | None = None,
) -> ChatPrompt:
    """Makes the text of the next turn; arguments and errors as of :func:`chat_inputs`.

    Args:
        processors: Of the model.
        messages: The turns so far; those of the role ``tool`` are what tools answered.
        options: Another template, and what it is told.
        tools: What the model may call, each as ``{"type": "function", "function": {"name": ...}}``.
        video_options: How videos are shown.
    """
    wishes = options or ChatOptions()
    files: dict[str, list[str]] = {kind: [] for kind in _MEDIA}
    turns = [_read_message(message, files) for message in messages]
    if not turns:
        raise InputError("The conversation is empty.")
    template = chat_template(processors, wishes.template)
    told = wishes.told(template_settings(processors, template))
    if _renders_itself(processors) and wishes.template is None:
        text = _render_by_tokenizer(processors, turns)
        template = ""
    elif template is None:
        text = "\n".join("".join(_as_text(processors, part) for part in turn.parts) for turn in turns)
    else:
        text = _render(processors, template, turns, {**told, **({"tools": list(tools)} if tools else {})})
    if any(str(tool["function"]["name"]) not in text for tool in tools):
        raise InputError("This model cannot be told of tools: its chat template does not show them.")
    media = MediaFiles(
        images=tuple(files["image"]),
        audios=tuple(files["audio"]),
        videos=tuple(files["video"]),
        options=video_options or VideoOptions(),
    )
    return ChatPrompt(text=text, template=template, media=media)


def chat_template(processors: Processors, wanted: str | None = None) -> str | None:
    """The template that turns messages into a prompt, or None where the model was not trained to chat.

    Args:
        processors: Of the model.
        wanted: The name of one of several that the model has, or a file.

    Raises:
        LoadError: If there is a file for it that cannot be read, or there is no such template.
        InputError: If the file that is wanted cannot be read.
    """
    own = processors.tokenizer.chat_template
    if own is None:
        own = processor_template(processors.path)
    if wanted is not None and not (isinstance(own, Mapping) and wanted in own) and Path(wanted).exists():
        return template_of_file(Path(wanted))
    if own is None and wanted is not None:
        raise InputError(f"There is no chat template {wanted!r}.", advice="Name a file.", path=Path(wanted))
    return choose_template(own, wanted, path=processors.path)


def template_settings(processors: Processors, template: str | None) -> frozenset[str]:
    """What a chat template can be told, by name; nothing where there is none."""
    return frozenset() if template is None else settings_of(template) - {*processors.tokenizer.special_tokens_map}


def check_options(processors: Processors, options: ChatOptions) -> None:
    """Refuses what would have no effect on any conversation.

    Raises:
        UsageError: If the template is told what it does not read.
        InputError: If the template that was asked for cannot be read.
        LoadError: If the model's cannot.
    """
    options.told(template_settings(processors, chat_template(processors, options.template)))


def can_chat(processors: Processors) -> bool:
    """Whether the model was trained to chat, as far as its files say. Raises as :func:`chat_template`."""
    return _renders_itself(processors) or chat_template(processors) is not None


def _read_message(message: Mapping[str, Any], files: Mapping[str, list[str]]) -> _Turn:
    """Checks a message; appends its media to the list of their kind."""
    role, content = message.get("role"), message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(role, str) or not isinstance(content, Sequence):
        raise InputError(f"A message needs a 'role' and a 'content' of text or parts, not {dict(message)!r}.")
    parts: list[dict[str, str]] = []
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                parts.append({"type": "text", "text": check_text(text, "The message")})
            case {"type": str(kind), "path": str() | Path() as file} if kind in files:
                files[kind].append(str(file))
                parts.append({"type": kind})
            case _:
                raise InputError(
                    f"{part!r} is not a part of a message.",
                    advice="Parts are {'type': 'text', 'text': ...}, {'type': 'image', 'path': ...}, "
                    "{'type': 'audio', 'path': ...} and {'type': 'video', 'path': ...}.",
                )
    more = {key: message[key] for key in _KEPT if message.get(key) is not None}
    if not is_json(more):
        raise InputError(f"A message of {role!r} holds what is not JSON: {more!r}.")
    return _Turn(role, parts, more)


def _as_text(processors: Processors, part: Mapping[str, str]) -> str:
    if part["type"] == "text":
        return part["text"]
    tokens = _tokens_of(processors, part["type"])
    return "" if tokens is None else tokens.placeholder


def _tokens_of(processors: Processors, kind: str) -> MediaTokens | None:
    """The tokens around a medium, as far as the model's way to mention it is known."""
    return {"image": processors.pictures, "audio": processors.sounds, "video": processors.videos}[kind]


def _renders_itself(processors: Processors) -> bool:
    """Some tokenizers make prompts with code of their library (Mistral's), and have no template."""
    from transformers import PreTrainedTokenizerBase

    own = type(processors.tokenizer).apply_chat_template
    return own is not PreTrainedTokenizerBase.apply_chat_template and processors.tokenizer.chat_template is None


def _render_by_tokenizer(processors: Processors, turns: Sequence[_Turn]) -> str:
    conversation = [{"role": turn.role, "content": turn.text} for turn in turns]
    with (
        processors.tokenizing,
        foreign("This conversation with the tokenizer", processors.path, error=InputError, advice=None),
    ):
        return str(processors.tokenizer.apply_chat_template(conversation, tokenize=False))


def _render(processors: Processors, template: str, turns: list[_Turn], variables: Mapping[str, Any]) -> str:
    """Renders the conversation in the form that the template was written for.

    Templates of text-only models take plain strings, those of multimodal ones take parts, and some take either; only
    rendering tells. The first form in which every text can be seen is the one.
    """
    told = {"add_generation_prompt": True, **_special_tokens(processors), **variables}
    forms = list(_forms(processors, turns))
    results = render(template, forms, told)
    for result in results:
        if result.text is not None and not _lost(result.text, turns) and _media_are_there(processors, result, turns):
            return result.text
    # A template may change texts (trim, quote, escape): then a marker in their place can be seen.
    marked = render(template, list(_forms(processors, [_marked(turn, i) for i, turn in enumerate(turns)])), told)
    for result, by_marker in zip(results, marked, strict=True):
        text = by_marker.text
        if result.text is None or text is None or not _media_are_there(processors, result, turns):
            continue
        if all(f"{_MARKER}{i}0" in text for i, turn in enumerate(turns) if _must_be_seen(turn)):
            return result.text
    raise _unusable(results, turns)


def _unusable(results: list[Rendered], turns: list[_Turn]) -> InputError:
    """Why none of the forms will do."""
    shown = [result.text for result in results if result.text is not None]
    if not shown:
        return InputError(f"The model's chat template refuses this conversation: {results[0].problem}")
    lost = _lost(shown[0], turns)
    what = f"what the {lost[0].role} says" if lost else "a picture, sound or video"
    return InputError(
        f"The model's chat template leaves out {what}.",
        advice="Pass a template that shows it (--chat-template), or leave that out.",
    )


def _forms(processors: Processors, turns: Sequence[_Turn]) -> Iterator[list[dict[str, Any]]]:
    """The conversation as templates may expect it: texts, parts where there are media; parts; texts alone."""
    yield [_message(turn, turn.parts if turn.has_media else turn.text) for turn in turns]
    yield [_message(turn, turn.parts) for turn in turns]
    if any(turn.has_media for turn in turns):
        yield [_message(turn, "".join(_as_text(processors, part) for part in turn.parts)) for turn in turns]


def _message(turn: _Turn, content: object) -> dict[str, Any]:
    return {"role": turn.role, "content": content, **turn.more}


def _marked(turn: _Turn, number: int) -> _Turn:
    if not _must_be_seen(turn):
        return turn
    media = [part for part in turn.parts if part["type"] != "text"]
    return _Turn(turn.role, [*media, {"type": "text", "text": f"{_MARKER}{number}0"}], turn.more)


def _must_be_seen(turn: _Turn) -> bool:
    """What the model said before may be left out, as its reasoning usually is; what others say may not."""
    return turn.role != "assistant" and bool(turn.text.strip())


def _lost(prompt: str, turns: Sequence[_Turn]) -> list[_Turn]:
    """Turns whose text the prompt does not have, whatever became of blanks."""
    compact = "".join(prompt.split())
    return [turn for turn in turns if _must_be_seen(turn) and "".join(turn.text.split()) not in compact]


def _media_are_there(processors: Processors, result: Rendered, turns: Sequence[_Turn]) -> bool:
    """Whether the prompt mentions each medium once, as far as the model's way to do so is known."""
    for kind in _MEDIA:
        tokens = _tokens_of(processors, kind)
        count = sum(part["type"] == kind for turn in turns for part in turn.parts)
        if tokens is not None and count and (result.text or "").count(tokens.pad) != count:
            return False
    return True


def _special_tokens(processors: Processors) -> dict[str, Any]:
    """Special tokens by the names that templates know them by."""
    named = processors.tokenizer.special_tokens_map
    return {name: [*map(str, value)] if isinstance(value, list) else str(value) for name, value in named.items()}
